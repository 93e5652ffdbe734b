"""Readouts with a mask that are wrong in one way each, and the right one that they extend.

It has no ``from __future__ import annotations``: TorchScript could not read ``Final[...]``.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.jit import is_scripting

from regplug.nn import (
    check_mask,
    check_registers,
    fixed_count,
    in_dtype_of,
    masked_mean,
    zero_empty_rows,
    zero_padding,
)

WIDTH = 6


class RightMasked(nn.Module):
    """The mean token, through a layer; it passes every check."""

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int | None, hidden_dim: int) -> None:
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = WIDTH
        self.map = nn.Linear(hidden_dim, WIDTH)

    def flop_count(self, hidden_dim: int) -> int:
        return fixed_count("Right", self.num_registers) * hidden_dim + 2 * hidden_dim * WIDTH + WIDTH

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        check_registers(registers, "readout 'right'", self.num_registers, self.hidden_dim)
        tokens = in_dtype_of(self.map.weight, registers)
        if mask is None:
            return self.read(tokens)
        check_mask(mask, registers, "readout 'right'")
        return self.read_masked(tokens, mask)

    def read(self, tokens: Tensor) -> Tensor:
        return self.map(tokens.mean(1))

    def read_masked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return zero_empty_rows(self.map(masked_mean(zero_padding(tokens, mask), mask)), mask)


class OnlyFixed(RightMasked):
    """Right, but its constructor takes no None."""

    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__(num_registers, hidden_dim)


class NotScriptable(RightMasked):
    """Right, in Python that TorchScript cannot read."""

    def read(self, tokens: Tensor) -> Tensor:
        return super().read(*[tokens for _ in (lambda: None,)])


class GivesZeros(RightMasked):
    """Right: it refuses no sample."""

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        check_registers(registers, "readout 'right'", self.num_registers, self.hidden_dim)
        tokens = in_dtype_of(self.map.weight, registers)
        return self.read(tokens) if mask is None else self.read_masked(tokens, mask)


# ---- padding


class IgnoresTheMask(GivesZeros):
    def read_masked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.read(tokens)


class IgnoresTheMaskIfScripted(RightMasked):
    def read_masked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        counted = torch.ones_like(mask) if is_scripting() else mask
        return zero_empty_rows(self.map(masked_mean(zero_padding(tokens, mask), counted)), mask)


class DividesByAllTokens(RightMasked):
    def read_masked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return zero_empty_rows(self.map(zero_padding(tokens, mask).mean(1)), mask)


class MultipliesByTheMask(RightMasked):
    def read_masked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return zero_empty_rows(self.map(masked_mean(tokens * mask.unsqueeze(2), mask)), mask)


class DropsNaN(RightMasked):
    """It takes NaN and infinity for padding, but other numbers for tokens."""

    def read_masked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        known = tokens.nan_to_num(0.0, 0.0, 0.0)
        return zero_empty_rows(self.map(masked_mean(known, mask)), mask)


class ReadsTheFirstTokens(RightMasked):
    """It takes the mask for a length: padding is on the right."""

    def read_masked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        counted = torch.arange(tokens.shape[1], device=tokens.device) < mask.sum(1, keepdim=True)
        return zero_empty_rows(self.map(masked_mean(zero_padding(tokens, counted), counted)), mask)


# ---- gradients


class LeaksAGradient(RightMasked):
    def read_masked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        known = tokens.nan_to_num(0.0, 0.0, 0.0)
        return super().read_masked(tokens + (known - known.detach()).sum(1, keepdim=True), mask)


class MasksAfterTheLayer(RightMasked):
    def read_masked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return zero_empty_rows(masked_mean(zero_padding(self.map(tokens), mask), mask), mask)


# ---- samples without a token


class DividesByZero(GivesZeros):
    def read_masked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.map(zero_padding(tokens, mask).sum(1) / mask.sum(1, keepdim=True))


class GivesItsBias(GivesZeros):
    def read_masked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.map(masked_mean(zero_padding(tokens, mask), mask))


class GivesItsBiasIfExported(RightMasked):
    def read_masked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.map(masked_mean(zero_padding(tokens, mask), mask))


class ReadsTheMask(RightMasked):
    def read_masked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if not bool(mask.any(1).all()):
            raise ValueError("a sample without a token")
        return super().read_masked(tokens, mask)


class EmptiesTheBatch(GivesZeros):
    def read_masked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return super().read_masked(tokens, mask) * mask.any(1).all()


# ---- a mask of all tokens, and any number of them


class DoublesAFullBatch(RightMasked):
    def read_masked(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return super().read_masked(tokens, mask) * (1 + mask.all().to(tokens.dtype))


class RefusesManyTokens(RightMasked):
    def read(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > 8:
            raise ValueError("too many tokens")
        return super().read(tokens)


class DividesByOneLess(RightMasked):
    """As an unbiased deviation does: no number for a single token."""

    def read(self, tokens: Tensor) -> Tensor:
        return super().read(tokens) + 0 * tokens.std(1).sum(1, keepdim=True)


class DoublesIfFree(RightMasked):
    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(registers, mask) * (2 if self.num_registers is None else 1)
