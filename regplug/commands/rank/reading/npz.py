"""NumPy's ``.npz`` files, read in rows: no array of tokens is in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regplug.commands.npz_archive import NpzArchive
from regplug.commands.rank.reading.arrays import check_floats, plan_arrays
from regplug.commands.rank.reading.source import digest_of_files, owner_of
from regplug.errors import SpecError

MAX_LABEL_BYTES = 1 << 30


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
        self._archive = NpzArchive(path, self._owner)
        shapes = {name: one.shape for name, one in self._archive.members.items()}
        self._plan = plan_arrays(self._owner, shapes, labels, groups)
        for name in self._plan.parts:
            self._check_part(name)
        self.labels: Any = self._column(self._plan.labels)
        self.groups: Any = None if self._plan.groups is None else self._column(self._plan.groups)
        self.content = self._plan.content

    def __len__(self) -> int:
        return self._plan.count

    def digest(self) -> str:
        """The sha256 of the file."""
        return digest_of_files([self.path])

    def batches(self, start: int, size: int) -> Iterator[dict[str, Tensor]]:
        """The arrays' rows from ``start`` on, in float32."""
        for rows in self._archive.rows(self._plan.parts, start, size):
            yield {name: torch.from_numpy(values.astype(np.float32)) for name, values in rows.items()}

    def _check_part(self, name: str) -> None:
        member = self._archive.members[name]
        self._archive.refuse_objects(name)
        check_floats(self._owner, name, member.dtype.kind == "f", member.dtype)
        if member.fortran and member.nbytes:
            raise SpecError(
                f"{self._owner}: {name}: expected rows one after the other, got Fortran's order; save "
                f"numpy.ascontiguousarray({name})."
            )

    def _column(self, name: str) -> np.ndarray:
        """The labels, or the groups."""
        size = self._archive.members[name].nbytes
        if size > MAX_LABEL_BYTES:
            raise SpecError(f"{self._owner}: {name}: expected at most {MAX_LABEL_BYTES} bytes, got {size}.")
        values = self._archive.whole(name)
        return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
