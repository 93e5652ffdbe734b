"""NumPy's ``.npz`` files: nothing is unpickled, and rows are read without holding the whole array."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from regplug.errors import SpecError, one_line

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
    def row_bytes(self) -> int:
        """The size of the values of one row."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """The size of its values."""
        return prod(self.shape) * self.dtype.itemsize


class NpzArchive:
    """The arrays in an ``.npz`` file, compressed or not.

    Args:
        path: The file.
        owner: The file, for messages.

    Attributes:
        members: The arrays by name; none is read yet.

    Raises:
        SpecError: It is damaged.
    """

    def __init__(self, path: Path, owner: str) -> None:
        self._path = path
        self._owner = owner
        with self.opened() as archive:
            self.members = {
                info.filename.removesuffix(SUFFIX): self._member(archive, info)
                for info in archive.infolist()
                if info.filename.endswith(SUFFIX)
            }

    @contextmanager
    def opened(self) -> Iterator[zipfile.ZipFile]:
        """The file during the block; damage becomes an error that names it."""
        try:
            with zipfile.ZipFile(self._path) as archive:
                yield archive
        # NotImplementedError: another compression; RuntimeError: encrypted
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise SpecError(f"{self._owner}: expected a file of numpy.savez, got {one_line(error)}.") from error

    def whole(self, name: str) -> np.ndarray:
        """All values of an array of numbers or texts.

        Raises:
            SpecError: It holds Python objects, or is damaged.
        """
        member = self.members[name]
        self.refuse_objects(name)
        with self.opened() as archive, archive.open(name + SUFFIX) as file:
            file.seek(member.start)
            data = self._read(file, name, member.nbytes)
        return np.frombuffer(data, member.dtype).reshape(member.shape, order="F" if member.fortran else "C")

    def rows(self, names: tuple[str, ...], start: int, size: int) -> Iterator[dict[str, np.ndarray]]:
        """The rows of arrays with as many rows from ``start`` on, at most ``size`` at a time."""
        with self.opened() as archive:
            files = {name: archive.open(name + SUFFIX) for name in names}
            for name, file in files.items():
                file.seek(self.members[name].start + start * self.members[name].row_bytes)
            count = self.members[names[0]].shape[0]
            for begin in range(start, count, size):
                yield {name: self._rows(file, name, min(size, count - begin)) for name, file in files.items()}

    def refuse_objects(self, name: str) -> None:
        """Refuse an array that would have to be unpickled.

        Raises:
            SpecError: It holds Python objects.
        """
        if self.members[name].dtype.hasobject:
            raise SpecError(
                f"{self._owner}: {name}: expected numbers or texts, got Python objects, which are not unpickled, as "
                "that may run code; save an array of floats, integers or texts."
            )

    def _read(self, file: IO[bytes], name: str, count: int) -> bytes:
        """So many bytes of an array's file.

        Raises:
            SpecError: There are fewer.
        """
        data = file.read(count)
        if len(data) != count:
            raise SpecError(
                f"{self._owner}: {name}: expected {count} more bytes, got {len(data)}; the file is damaged."
            )
        return data

    def _rows(self, file: IO[bytes], name: str, count: int) -> np.ndarray:
        member = self.members[name]
        data = self._read(file, name, count * member.row_bytes)
        return np.frombuffer(data, member.dtype).reshape(count, *member.shape[1:])

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
