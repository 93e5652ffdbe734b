"""NumPy's ``.npz`` files, read in rows: nothing is unpickled, and no array of tokens is in memory as a whole."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from regplug.commands.rank.reading.arrays import check_floats, plan_arrays
from regplug.commands.rank.reading.source import digest_of_files, owner_of
from regplug.errors import SpecError, one_line

MAX_LABEL_BYTES = 1 << 30
SUFFIX = ".npy"
READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class Member:
    """One array of the archive.

    Args:
        shape: Its shape.
        dtype: Its dtype.
        fortran: Whether columns are stored one after the other, and not rows.
        start: Where its values begin in the member.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int

    @property
    def nbytes(self) -> int:
        """The size of its values."""
        return prod(self.shape) * self.dtype.itemsize


class NpzFile:
    """Arrays in an ``.npz`` file, compressed or not; a ``Source``.

    Args:
        path: The file.
        labels: The array with the labels; None for ``labels`` or ``label``.
        groups: The array with the groups, or None.

    Raises:
        SpecError: It is damaged, an array that is read holds objects, or the arrays are not what ``plan_arrays``
            expects.
    """

    def __init__(self, path: Path, labels: str | None, groups: str | None) -> None:
        self.kind = "npz"
        self.path = path
        self.names: Sequence[str] | None = None
        self.facts: Mapping[str, Any] = {}
        self._owner = owner_of(path)
        with self._opened() as archive:
            self._members = {
                info.filename.removesuffix(SUFFIX): self._member(archive, info)
                for info in archive.infolist()
                if info.filename.endswith(SUFFIX)
            }
            shapes = {name: one.shape for name, one in self._members.items()}
            self._plan = plan_arrays(self._owner, shapes, labels, groups)
            for name in self._plan.parts:
                self._check_part(name)
            self.labels: Any = self._whole(archive, self._plan.labels)
            self.groups: Any = None if self._plan.groups is None else self._whole(archive, self._plan.groups)
        self.content = self._plan.content

    def __len__(self) -> int:
        return self._plan.count

    def digest(self) -> str:
        """The sha256 of the file."""
        return digest_of_files([self.path])

    def batches(self, start: int, size: int) -> Iterator[dict[str, Tensor]]:
        """The arrays' rows from ``start`` on, in float32."""
        with self._opened() as archive:
            files = {name: archive.open(name + SUFFIX) for name in self._plan.parts}
            for name, file in files.items():
                file.seek(self._members[name].start + start * self._row(name))
            for begin in range(start, self._plan.count, size):
                rows = min(size, self._plan.count - begin)
                yield {name: self._rows(file, name, rows) for name, file in files.items()}

    def _row(self, name: str) -> int:
        member = self._members[name]
        return prod(member.shape[1:]) * member.dtype.itemsize

    def _rows(self, file: IO[bytes], name: str, rows: int) -> Tensor:
        member = self._members[name]
        data = self._read(file, name, rows * self._row(name))
        values = np.frombuffer(data, member.dtype).reshape(rows, *member.shape[1:])
        return torch.from_numpy(values.astype(np.float32))

    def _read(self, file: IO[bytes], name: str, count: int) -> bytes:
        data = file.read(count)
        if len(data) != count:
            raise SpecError(
                f"{self._owner}: {name}: expected {count} more bytes, got {len(data)}; the file is damaged."
            )
        return data

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        # NotImplementedError: another compression; RuntimeError: encrypted
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise SpecError(f"{self._owner}: expected a file of numpy.savez, got {one_line(error)}.") from error

    def _member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
        name = info.filename.removesuffix(SUFFIX)
        with archive.open(info) as file:
            try:
                version = npy.read_magic(file)
                if version not in READERS:
                    raise ValueError(f"version {version} of the format")
                shape, fortran, dtype = READERS[version](file)
            except ValueError as error:
                raise SpecError(f"{self._owner}: {name}: expected an array, got {one_line(error)}.") from error
            found = Member(shape, dtype, fortran, file.tell())
        if not dtype.hasobject and found.start + found.nbytes != info.file_size:
            raise SpecError(
                f"{self._owner}: {name}: expected {found.nbytes} bytes for {dtype} {list(shape)}, "
                f"got {info.file_size - found.start}; the file is damaged."
            )
        return found

    def _check_part(self, name: str) -> None:
        member = self._members[name]
        self._check_objects(name)
        check_floats(self._owner, name, member.dtype.kind == "f", member.dtype)
        if member.fortran and member.nbytes:
            raise SpecError(
                f"{self._owner}: {name}: expected rows one after the other, got Fortran's order; save "
                f"numpy.ascontiguousarray({name})."
            )

    def _check_objects(self, name: str) -> None:
        if self._members[name].dtype.hasobject:
            raise SpecError(
                f"{self._owner}: {name}: expected numbers or texts, got Python objects, which are not unpickled, as "
                "that may run code; save an array of floats, integers or texts."
            )

    def _whole(self, archive: zipfile.ZipFile, name: str) -> np.ndarray:
        member = self._members[name]
        self._check_objects(name)
        if member.nbytes > MAX_LABEL_BYTES:
            raise SpecError(f"{self._owner}: {name}: expected at most {MAX_LABEL_BYTES} bytes, got {member.nbytes}.")
        with archive.open(name + SUFFIX) as file:
            file.seek(member.start)
            data = self._read(file, name, member.nbytes)
        values = np.frombuffer(data, member.dtype).reshape(member.shape, order="F" if member.fortran else "C")
        return np.char.decode(values, "utf-8") if member.dtype.kind == "S" else values
