"""A file of samples, in pieces that can be read alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Piece:
    """The smallest part of a file that can be read alone: a row group, a record batch, some rows of tensors."""

    rows: int
    nbytes: int


class Shard(Protocol):
    """An open file. Columns are Arrow arrays, or tensors."""

    names: Sequence[str]

    def pieces(self) -> Sequence[Piece]:
        """All pieces in their order."""

    def batches(self, pieces: range, names: Sequence[str], size: int) -> Iterator[Mapping[str, Any]]:
        """The columns ``names`` of some pieces, at most ``size`` rows at a time."""

    def empty(self, names: Sequence[str]) -> Mapping[str, Any]:
        """The columns without rows."""

    def close(self) -> None:
        """Close the file."""
