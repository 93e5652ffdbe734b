"""Readouts that average the registers: ``cond_dim`` is D, and which register said what is lost."""

from typing import Final

import torch
from torch import Tensor, nn

from regplug.readouts.check import check_registers, check_sizes


class RegisterMean(nn.Module):
    """The plain average of the registers: ``c = (1 / R) sum_r x_r``. No parameters.

    Args:
        num_registers: Registers per sample, R >= 1.
        hidden_dim: Width of a register token, D; ``cond_dim`` is D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterMean(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        check_sizes("RegisterMean", num_registers=num_registers, hidden_dim=hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = hidden_dim

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample of width ``dim``: R - 1 additions and one division per channel."""
        return self.num_registers * dim

    def forward(self, registers: Tensor) -> Tensor:
        """Average ``registers`` ``[B, R, D]`` to ``[B, D]``; another shape is a ShapeError."""
        check_registers(registers, "readout 'mean'", self.num_registers, self.hidden_dim)
        return registers.mean(dim=1)

    def extra_repr(self) -> str:
        """The sizes, as ``print(module)`` shows them."""
        return f"num_registers={self.num_registers}, hidden_dim={self.hidden_dim}"


class RegisterPooling(nn.Module):
    """A learned average: ``c = sum_r softmax(w)_r x_r``, with one logit per register.

    The logits start at zero, so the average starts plain. They are tagged ``_no_weight_decay``.
    Source: nvSubquadratic, modules/film.py, whose parameter name and tags it keeps.

    Args:
        num_registers: Registers per sample, R >= 1.
        hidden_dim: Width of a register token, D; then ``cond_dim`` is D and known, and other widths are
            refused. None takes any width, as the source does.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterPooling(4, hidden_dim=384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int]
    hidden_dim: Final[int | None]
    out_dim: Final[int | None]

    def __init__(self, num_registers: int, hidden_dim: int | None = None) -> None:
        check_sizes("RegisterPooling", num_registers=num_registers)
        if hidden_dim is not None:
            check_sizes("RegisterPooling", hidden_dim=hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = hidden_dim
        self.logits = nn.Parameter(torch.zeros(num_registers))
        self.logits._no_weight_decay = True  # type: ignore[attr-defined]

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample of width ``dim``: 3R for the softmax, 2 per multiply-add of the sum."""
        return 3 * self.num_registers + 2 * self.num_registers * dim

    def forward(self, registers: Tensor) -> Tensor:
        """Average ``registers`` ``[B, R, D]`` to ``[B, D]``; another shape is a ShapeError."""
        shape = registers.shape
        hidden_dim = self.hidden_dim
        if hidden_dim is None:
            hidden_dim = shape[-1] if len(shape) > 0 else 0
        # at B = 1 a call costs as much as a tenth of the whole, so the check is called where it will refuse
        if len(shape) != 3 or shape[1] != self.num_registers or shape[2] != hidden_dim:
            check_registers(registers, "readout 'pool'", self.num_registers, hidden_dim)
        logits = self.logits
        if registers.dtype != logits.dtype:
            registers = registers.to(logits.dtype)
        # a batched product is 1.1 to 3.5 times faster than einsum("r,brc->bc") and gives the same bits
        return torch.bmm(logits.softmax(0).expand(shape[0], 1, -1), registers).squeeze(1)

    def extra_repr(self) -> str:
        """The sizes, as ``print(module)`` shows them."""
        return f"num_registers={self.num_registers}, hidden_dim={self.hidden_dim}"
