"""Pieces of conditioning vectors: whether the pieces that a forward uses make up the whole vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

CUTTING = {"__getitem__", "narrow", "split", "chunk", "tensor_split", "split_with_sizes"}


@dataclass(frozen=True)
class Cut:
    """A conditioning vector that was used in pieces.

    Args:
        where: Path of the module in whose forward it was cut.
        width: Its width.
        used: How many of its numbers the used pieces hold.
        pieces: How many pieces were used; an unused rest smaller than this comes from rounding.
        readouts: Paths of the readouts that it comes from.
    """

    where: str
    width: int
    used: int
    pieces: int
    readouts: frozenset[str]

    @property
    def is_whole(self) -> bool:
        """Whether all of the vector was used."""
        return self.width - self.used < max(self.pieces, 1)


@dataclass
class _Vector:
    where: str
    tensor: Tensor
    readouts: frozenset[str]
    used: set[int] = field(default_factory=set)
    pieces: set[range] = field(default_factory=set)


class VectorPieces:
    """Records the pieces that vectors are cut into along their width, and which of them are used."""

    def __init__(self) -> None:
        self._vectors: dict[int, _Vector] = {}
        self._pieces: dict[int, tuple[Tensor, _Vector, range]] = {}  # holds the tensors, so that no id is used again

    def cut(self, name: str, where: str, vector: Tensor, pieces: Sequence[Tensor], readouts: frozenset[str]) -> None:
        """Record the pieces, if a torch function of this name cuts a readout's vector ``[B, n]``."""
        if name not in CUTTING or not readouts or vector.dim() != 2 or not vector.is_contiguous():
            return
        known = self._vectors.setdefault(id(vector), _Vector(where, vector, readouts))
        for one in pieces:
            start = int(one.storage_offset()) - int(vector.storage_offset())
            is_part = one.dim() == 2 and one.shape[0] == vector.shape[0] and one.stride() == vector.stride()
            if is_part and 0 <= start < vector.shape[1]:
                self._pieces[id(one)] = one, known, range(start, start + int(one.shape[1]))

    def use(self, tensors: Sequence[Tensor]) -> None:
        """Record that these tensors are used in a computation."""
        for one in tensors:
            if id(one) in self._pieces:
                _, vector, span = self._pieces[id(one)]
                vector.used.update(span)
                vector.pieces.add(span)

    def cuts(self) -> list[Cut]:
        """The vectors that had a piece used, in the order in which they were cut."""
        return [
            Cut(one.where, int(one.tensor.shape[1]), len(one.used), len(one.pieces), one.readouts)
            for one in self._vectors.values()
            if one.used
        ]
