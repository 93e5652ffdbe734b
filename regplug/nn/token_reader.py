"""From all tokens to the conditioning vector: what a conditioner and an attached readout have in common."""

# TorchScript reads annotations only when they are not postponed
from typing import Optional

from torch import Tensor, nn

from regplug.errors import ShapeError
from regplug.nn.select import SelectRegisters
from regplug.nn.wrappers import unwrapped
from regplug.registry.layout import TokenLayout
from regplug.registry.readout_inputs import takes_mask, vector_widths

# TorchScript knows no | and no dict in annotations of methods
Mask = Optional[Tensor]  # noqa: UP045
Vectors = Optional[dict[str, Tensor]]  # noqa: UP045


class TokenReader(nn.Module):
    """A module that selects registers and reads them."""

    __constants__ = ("takes_mask", "takes_vectors")  # a subclass hides Final annotations of its base from TorchScript
    takes_mask: bool
    takes_vectors: bool

    def _set_readout(self, layout: TokenLayout, readout: nn.Module) -> None:
        """Add the selection and the readout; its keys are ``readout.*``."""
        self.layout = layout
        self.select = SelectRegisters(layout)
        self.readout = readout
        plain = unwrapped(readout)
        self.takes_mask = takes_mask(plain)
        self.takes_vectors = bool(vector_widths(plain))

    def _read(self, tokens: Tensor, mask: Mask, vectors: Vectors) -> Tensor:
        """The conditioning vector ``[B, cond_dim]`` for tokens ``[B, T, D]``, with a mask ``[B, T]``."""
        registers = self.select(tokens)
        if self.takes_mask:
            of_registers = None if mask is None else self.select.of_mask(mask, tokens)
            if self.takes_vectors:
                conditioning: Tensor = self.readout(registers, of_registers, vectors)
            else:
                refuse(vectors is not None, "vectors")
                conditioning = self.readout(registers, of_registers)
        else:
            refuse(mask is not None, "mask")
            refuse(vectors is not None, "vectors")
            conditioning = self.readout(registers)
        return conditioning


def refuse(given: bool, word: str) -> None:
    """Refuse an input that the readout does not take."""
    if given:
        raise ShapeError(f"readout: expected no {word}, as it takes none, got some.")
