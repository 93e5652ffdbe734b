"""What every built-in readout refuses, eager and scripted alike, and the dtype that it computes in."""

import math

from torch import Tensor

from regplug.errors import ShapeError, SpecError
from regplug.layout import is_int


def check_sizes(owner: str, **sizes: int) -> None:
    """Refuse a size that is not a positive integer."""
    for word, size in sizes.items():
        if not (is_int(size) and size >= 1):
            raise SpecError(f"{owner}: {word}: expected a positive integer, got {size!r}.")


def check_positive(owner: str, **numbers: float) -> None:
    """Refuse a number that is not positive and finite."""
    for word, number in numbers.items():
        if not ((is_int(number) or isinstance(number, float)) and 0 < number < math.inf):
            raise SpecError(f"{owner}: {word}: expected a positive, finite number, got {number!r}.")


def check_multiple(owner: str, word: str, size: int, of: int, spelled: str) -> None:
    """Refuse a size that ``of`` does not divide; ``spelled`` says what ``of`` is."""
    if size % of != 0:
        raise SpecError(f"{owner}: {word}: expected a multiple of {spelled}, got {size}.")


def check_registers(registers: Tensor, owner: str, num_registers: int, hidden_dim: int) -> None:
    """Refuse registers that are not ``[B, num_registers, hidden_dim]``; plain enough for TorchScript."""
    shape = registers.shape
    if len(shape) != 3 or shape[1] != num_registers or shape[2] != hidden_dim:
        raise ShapeError(
            f"{owner}: expected registers [B, {num_registers}, {hidden_dim}], got {list(registers.shape)}."
        )


def in_dtype_of(parameter: Tensor, registers: Tensor) -> Tensor:
    """``registers`` in the parameter's dtype: a readout computes in that of its parameters, in every mode.

    A quantized layer keeps integers, which are no dtype to compute in.
    """
    # Tensor.to costs 300 ns even where it has nothing to do
    if registers.dtype == parameter.dtype or not parameter.is_floating_point():
        return registers
    return registers.to(parameter.dtype)
