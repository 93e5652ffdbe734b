"""The parts of a join as modules: a readout of some of the tokens, and a vector."""

# TorchScript reads Final[...] only when annotations are not postponed
from typing import Final, Optional

import torch
from torch import Tensor, nn

from regplug.errors import ShapeError
from regplug.nn.readouts.masking import is_readable, name_of_dtype
from regplug.registry.readout_inputs import takes_mask

# TorchScript knows no | and no dict in annotations of methods
Mask = Optional[Tensor]  # noqa: UP045
Vectors = Optional[dict[str, Tensor]]  # noqa: UP045


def without_padding(vector: Tensor, mask: Tensor, name: str) -> Tensor:
    """The vector of a part that reads all its tokens; padding among them is refused.

    Where the mask cannot be read without waiting, in a graph or on a device, the vectors of such samples are NaN.
    """
    if not is_readable(mask):
        return torch.where(mask.all(dim=1, keepdim=True), vector, float("nan"))
    if not bool(mask.all()):
        sample = int(torch.nonzero(~mask.all(dim=1))[0].item())
        raise ShapeError(
            f"readout 'join': mask: expected every token of '{name}' to count, which takes no mask, got padding in "
            f"sample {sample}."
        )
    return vector


class JoinedReadout(nn.Module):
    """A readout of the tokens ``tokens[:, first:stop]``."""

    first: Final[int]
    stop: Final[Optional[int]]  # noqa: UP045
    place: Final[int]
    takes_mask: Final[bool]

    def __init__(self, name: str, first: int, stop: int | None, place: int, readout: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.first = first
        self.stop = stop
        self.place = place
        self.takes_mask = takes_mask(readout)
        self.readout = readout

    def forward(self, pieces: list[Tensor], tokens: Tensor, mask: Mask, vectors: Vectors) -> Tensor:
        """The readout's ``[B, width]``; its tokens are one of the pieces."""
        own = pieces[self.place]
        if mask is None:
            found: Tensor = self.readout(own)
        elif self.takes_mask:
            found = self.readout(own, mask[:, self.first : self.stop])
        else:
            found = without_padding(self.readout(own), mask[:, self.first : self.stop], self.name)
        return found

    def read(self, pieces: list[Tensor], tokens: Tensor, mask: Mask, vectors: Vectors) -> Tensor:
        """As ``forward``, in eager mode: without nn.Module's slow lookup of the readout."""
        if mask is None:
            found: Tensor = self._modules["readout"](pieces[self.place])  # type: ignore[misc]
            return found
        return self.forward(pieces, tokens, mask, vectors)

    def cut(self, tokens: Tensor, pieces: list[Tensor]) -> None:
        """Add its tokens to the pieces."""
        pieces.append(tokens[:, self.first : self.stop])


class JoinedVector(nn.Module):
    """A vector ``[B, width]``, as it is or through a readout that gets it as one token."""

    name: Final[str]
    width: Final[int]
    has_readout: Final[bool]

    def __init__(self, name: str, width: int, readout: nn.Module | None) -> None:
        super().__init__()
        self.name = name
        self.width = width
        self.has_readout = readout is not None
        self.readout = nn.Identity() if readout is None else readout

    def forward(self, pieces: list[Tensor], tokens: Tensor, mask: Mask, vectors: Vectors) -> Tensor:
        """The vector's part, ``[B, ...]``; another shape or device, and integers, are a ShapeError.

        It keeps its own precision up to here: tokens may be coarser.
        """
        if vectors is None or self.name not in vectors:
            raise ShapeError(f"readout 'join': expected the vector '{self.name}' [B, {self.width}], got none.")
        vector = vectors[self.name]
        # one condition: each branch takes as long as a comparison
        if (
            vector.dim() != 2
            or vector.size(0) != tokens.size(0)
            or vector.size(1) != self.width
            or not vector.is_floating_point()
            or vector.device != tokens.device
        ):
            self.refuse(vector, tokens)
        if self.has_readout:
            vector = self.readout(vector.unsqueeze(1))
        return vector

    def read(self, pieces: list[Tensor], tokens: Tensor, mask: Mask, vectors: Vectors) -> Tensor:
        """As ``forward``."""
        return self.forward(pieces, tokens, mask, vectors)

    def cut(self, tokens: Tensor, pieces: list[Tensor]) -> None:
        """It has no tokens."""

    def refuse(self, vector: Tensor, tokens: Tensor) -> None:
        """Say what is wrong with a vector."""
        if list(vector.shape) != [tokens.shape[0], self.width]:
            raise ShapeError(
                f"readout 'join': expected {self.name} [{tokens.shape[0]}, {self.width}], got {list(vector.shape)}."
            )
        if not vector.is_floating_point():
            raise ShapeError(
                f"readout 'join': {self.name}: expected floating-point numbers, got dtype {name_of_dtype(vector)}."
            )
        raise ShapeError(f"readout 'join': {self.name}: expected device {tokens.device}, got {vector.device}.")
