"""NumPy's ``.npz`` files, read in rows: no array of tokens is in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regplug.commands.npz_archive import NpzArchive
from regplug.commands.rank.reading.arrays import ArrayFile, check_floats, plan_arrays
from regplug.commands.rank.reading.source import owner_of
from regplug.errors import SpecError

MAX_LABEL_BYTES = 1 << 30


class NpzFile(ArrayFile):
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
        owner = owner_of(path)
        self._archive = NpzArchive(path, owner)
        plan = plan_arrays(owner, {name: one.shape for name, one in self._archive.members.items()}, labels, groups)
        for name in plan.parts:
            _check_part(owner, self._archive, name)
        columns = [None if name is None else _column(owner, self._archive, name) for name in (plan.labels, plan.groups)]
        super().__init__("npz", path, plan, *columns)

    def batches(self, start: int, size: int) -> Iterator[dict[str, Tensor]]:
        """The arrays' rows from ``start`` on, in float32."""
        for rows in self._archive.rows(self._plan.parts, start, size):
            yield {name: torch.from_numpy(values.astype(np.float32)) for name, values in rows.items()}


def _check_part(owner: str, archive: NpzArchive, name: str) -> None:
    member = archive.members[name]
    archive.refuse_objects(name)
    check_floats(owner, name, member.dtype.kind == "f", member.dtype)
    if member.fortran and member.nbytes:
        raise SpecError(
            f"{owner}: {name}: expected rows one after the other, got Fortran's order; save "
            f"numpy.ascontiguousarray({name})."
        )


def _column(owner: str, archive: NpzArchive, name: str) -> np.ndarray:
    """The labels, or the groups."""
    size = archive.members[name].nbytes
    if size > MAX_LABEL_BYTES:
        raise SpecError(f"{owner}: {name}: expected at most {MAX_LABEL_BYTES} bytes, got {size}.")
    values = archive.whole(name)
    return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
