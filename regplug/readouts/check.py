"""What every built-in readout refuses, eager and scripted alike."""

from torch import Tensor

from regplug.errors import ShapeError, SpecError
from regplug.layout import is_int


def check_sizes(owner: str, **sizes: int) -> None:
    """Refuse a size that is not a positive integer."""
    for word, size in sizes.items():
        if not (is_int(size) and size >= 1):
            raise SpecError(f"{owner}: {word}: expected a positive integer, got {size!r}.")


def check_registers(registers: Tensor, owner: str, num_registers: int, hidden_dim: int) -> None:
    """Refuse registers that are not ``[B, num_registers, hidden_dim]``; plain enough for TorchScript."""
    shape = registers.shape
    if len(shape) != 3 or shape[1] != num_registers or shape[2] != hidden_dim:
        raise ShapeError(
            f"{owner}: expected registers [B, {num_registers}, {hidden_dim}], got {list(registers.shape)}."
        )
