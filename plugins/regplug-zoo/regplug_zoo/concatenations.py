"""Readouts that project and concatenate: each register keeps its position."""

from typing import Final

import torch
from torch import Tensor, nn

from regplug.nn import check_registers, in_dtype_of, show_settings
from regplug_zoo.sizes import concat_linear_width, per_register_compress_concat_width


class PerRegisterCompressConcat(nn.Module):
    """Compress each register with its own projection, then concatenate.

    ``c = [W_1 x_1 || ... || W_R x_R]``, without bias. ``compress-concat`` has one W for all; this readout suits
    registers that have learned different tasks. Each W_r starts as ``nn.Linear`` does: uniform within 1/sqrt(D).
    Source: nvSubquadratic, modules/film.py, ``RegisterCompressConcat``, with its projection not shared.

    Args:
        num_registers: Registers per sample, R >= 1.
        hidden_dim: Width of a register token, D.
        compressed_dim: Width each register keeps, c; ``cond_dim`` is R * c.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> PerRegisterCompressConcat(4, 384, compressed_dim=96)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int]
    hidden_dim: Final[int]
    compressed_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int, hidden_dim: int, compressed_dim: int) -> None:
        out_dim = per_register_compress_concat_width(num_registers, hidden_dim, compressed_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.compressed_dim = compressed_dim
        self.out_dim = out_dim
        self.weight = nn.Parameter(torch.empty(num_registers, compressed_dim, hidden_dim))
        nn.init.uniform_(self.weight, -(hidden_dim**-0.5), hidden_dim**-0.5)

    def flop_count(self, hidden_dim: int) -> int:
        """FLOPs for one sample: 2 per multiply-add of R projections from ``hidden_dim`` to c, all of it matrix part."""
        return self.num_registers * 2 * hidden_dim * self.compressed_dim

    def forward(self, registers: Tensor) -> Tensor:
        """Read ``registers`` ``[B, R, D]`` as ``[B, R * c]``; another shape is a ShapeError."""
        check_registers(registers, "readout 'per-register-compress-concat'", self.num_registers, self.hidden_dim)
        by_register = in_dtype_of(self.weight, registers).transpose(0, 1)
        compressed = torch.bmm(by_register, self.weight.transpose(1, 2))
        return compressed.transpose(0, 1).flatten(1)

    extra_repr = show_settings


class RegisterConcatLinear(nn.Module):
    """All registers, concatenated, through one linear layer: ``c = W [x_1 || ... || x_R] + b``.

    The most general linear readout; W starts as ``nn.Linear`` does.
    Source: DINO (Caron et al., 2021), eval_linear.py, which reads the concatenated class tokens of several blocks so.

    Args:
        num_registers: Registers per sample, R >= 1.
        hidden_dim: Width of a register token, D.
        out_features: Width of the result, which is ``cond_dim``.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterConcatLinear(4, 384, out_features=256)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 256])
    """

    num_registers: Final[int]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int, hidden_dim: int, out_features: int) -> None:
        out_dim = concat_linear_width(num_registers, hidden_dim, out_features)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim
        self.linear = nn.Linear(num_registers * hidden_dim, out_features)

    def flop_count(self, hidden_dim: int) -> int:
        """FLOPs for one sample: 2 per multiply-add of the matrix part, and the bias."""
        return 2 * self.num_registers * hidden_dim * self.out_dim + self.out_dim

    def forward(self, registers: Tensor) -> Tensor:
        """Read ``registers`` ``[B, R, D]`` as ``[B, out_features]``; another shape is a ShapeError."""
        check_registers(registers, "readout 'concat-linear'", self.num_registers, self.hidden_dim)
        conditioning: Tensor = self.linear(in_dtype_of(self.linear.weight, registers).flatten(1))
        return conditioning

    extra_repr = show_settings
