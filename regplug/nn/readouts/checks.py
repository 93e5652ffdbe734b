"""The shape check of every built-in readout, eager and scripted, and the dtype that it computes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regplug.errors import ShapeError

if TYPE_CHECKING:  # or ``regplug.nn`` would import torch
    from torch import Tensor


def check_registers(registers: Tensor, owner: str, num_registers: int | None, hidden_dim: int) -> None:
    """Refuse registers that are not ``[B, num_registers, hidden_dim]``; TorchScript can compile it.

    With None for ``num_registers``, any number from 1 up is accepted.
    """
    # by dim and size: in TorchScript, shape makes a list, which takes longer than the comparisons
    if num_registers is None:
        if registers.dim() != 3 or registers.size(1) < 1 or registers.size(2) != hidden_dim:
            raise ShapeError(
                f"{owner}: expected registers [B, N, {hidden_dim}] with N >= 1, got {list(registers.shape)}."
            )
    elif registers.dim() != 3 or registers.size(1) != num_registers or registers.size(2) != hidden_dim:
        raise ShapeError(
            f"{owner}: expected registers [B, {num_registers}, {hidden_dim}], got {list(registers.shape)}."
        )


def in_dtype_of(parameter: Tensor, registers: Tensor) -> Tensor:
    """``registers`` in the parameter's dtype, in which a readout computes in every mode.

    A quantized layer keeps integers; the registers then stay as they are.
    """
    # Tensor.to takes 0.6 us even where it has nothing to do, 15 % of `pool` at B = 1
    if registers.dtype == parameter.dtype or not parameter.is_floating_point():
        return registers
    return registers.to(parameter.dtype)
