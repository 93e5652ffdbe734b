"""Readouts that concatenate the registers: ``cond_dim`` grows with R, and each register keeps its position."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from regplug.nn.printing import show_settings
from regplug.nn.readouts.checks import check_registers, in_dtype_of
from regplug.nn.readouts.sizes import compress_concat_width, concat_width, mamba_reg_width, select_concat_width
from regplug.torch_private import project


class RegisterConcat(nn.Module):
    """All registers concatenated: ``c = [x_1 || ... || x_R]``. No parameters.

    Args:
        num_registers: Registers per sample, R >= 1.
        hidden_dim: Width of a register token, D; ``cond_dim`` is R * D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterConcat(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 1536])
    """

    num_registers: Final[int]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        out_dim = concat_width(num_registers, hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim

    def flop_count(self, hidden_dim: int) -> int:
        """No FLOPs: it only moves numbers."""
        return 0

    def forward(self, registers: Tensor) -> Tensor:
        """Concatenate ``registers`` ``[B, R, D]`` to ``[B, R * D]``; another shape is a ShapeError."""
        check_registers(registers, "readout 'concat'", self.num_registers, self.hidden_dim)
        return registers.flatten(1)

    extra_repr = show_settings


class RegisterCompressConcat(nn.Module):
    """Compress each register with one shared projection, then concatenate.

    ``c = [W x_1 || ... || W x_R]``, W without bias. Unlike an average, it keeps the registers apart.
    Source: nvSubquadratic, modules/film.py; the idea is Mamba-Reg's (Wang et al., 2024). Names and initial values are
    those of nvSubquadratic.

    Args:
        num_registers: Registers per sample, R >= 1.
        hidden_dim: Width of a register token, D.
        compressed_dim: Width each register keeps, c; ``cond_dim`` is R * c.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterCompressConcat(4, 384, compressed_dim=96)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int]
    hidden_dim: Final[int]
    compressed_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int, hidden_dim: int, compressed_dim: int) -> None:
        out_dim = compress_concat_width(num_registers, hidden_dim, compressed_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.compressed_dim = compressed_dim
        self.out_dim = out_dim
        self.compress = nn.Linear(hidden_dim, compressed_dim, bias=False)

    def flop_count(self, hidden_dim: int) -> int:
        """FLOPs for one sample: 2 per multiply-add of R projections from ``hidden_dim`` to c."""
        return self.num_registers * 2 * hidden_dim * self.compressed_dim

    def forward(self, registers: Tensor) -> Tensor:
        """Read ``registers`` ``[B, R, D]`` as ``[B, R * c]``; another shape is a ShapeError."""
        # called only where it will refuse: the call itself takes 7 % at B = 1
        if registers.dim() != 3 or registers.size(1) != self.num_registers or registers.size(2) != self.hidden_dim:
            check_registers(registers, "readout 'compress-concat'", self.num_registers, self.hidden_dim)
        if is_scripting():
            compressed: Tensor = self.compress(in_dtype_of(self.compress.weight, registers).contiguous())
            return compressed.flatten(1)
        # 1.2 to 1.35 times faster at B = 1 than calling the layer
        return project(self, "compress", registers).flatten(1)

    extra_repr = show_settings


class RegisterSelectConcat(nn.Module):
    """Some of the registers concatenated: ``c = [x_i1 || ... || x_ik]`` for given indices. No parameters.

    Source: RADIO's summary (Ranzinger et al., 2024, arXiv:2312.06709), which reads the class tokens of chosen teachers.

    Args:
        num_registers: Registers per sample, R >= 1.
        hidden_dim: Width of a register token, D; ``cond_dim`` is k * D.
        indices: Which registers, in the order of the output; each from 0 to R - 1, no duplicates.

    Raises:
        SpecError: A size is not a positive integer, or ``indices`` is empty, has duplicates or is out of range.

    Example:
        >>> RegisterSelectConcat(4, 384, indices=(0, 2))(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 768])
    """

    num_registers: Final[int]
    hidden_dim: Final[int]
    indices: Final[tuple[int, ...]]
    out_dim: Final[int]

    def __init__(self, num_registers: int, hidden_dim: int, indices: tuple[int, ...]) -> None:
        out_dim = select_concat_width(num_registers, hidden_dim, indices)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.indices = tuple(indices)
        self.out_dim = out_dim

    def flop_count(self, hidden_dim: int) -> int:
        """No FLOPs: it only moves numbers."""
        return 0

    def forward(self, registers: Tensor) -> Tensor:
        """Concatenate the chosen of ``registers`` ``[B, R, D]`` to ``[B, k * D]``; another shape is a ShapeError."""
        check_registers(registers, "readout 'select-concat'", self.num_registers, self.hidden_dim)
        return torch.cat([registers[:, index] for index in self.indices], dim=1)

    extra_repr = show_settings


class MambaRegReadout(nn.Module):
    """Compress each register, concatenate, normalise: ``c = RMSNorm([W x_1 || ... || W x_R])``.

    W, without bias, reduces each register to D / ratio; the norm has a weight and eps 1e-5. W is initialised from a
    normal distribution with deviation 0.02, truncated at 2; the norm's weight starts at 1.
    The source writes the width three times, as ``R * (D // ratio)``, ``R * D // ratio`` and ``D * (R // ratio)``, which
    agree only where ratio divides both; here it is the first, and ratio must divide D.

    Source: Mamba-Reg (Wang et al., 2024, arXiv:2405.14858), models_mamba.py. The keys ``neck`` and ``norm_neck`` are
    the same.

    Args:
        num_registers: Registers per sample, R >= 1.
        hidden_dim: Width of a register token, D, a multiple of ``ratio``; ``cond_dim`` is R * D / ratio.
        ratio: By how much each register is compressed, >= 2. (With 1 the source has neither layer; use ``concat``.)

    Raises:
        SpecError: A size is not a positive integer, ``ratio`` is below 2 or does not divide D.

    Example:
        >>> MambaRegReadout(12, 384, ratio=2)(torch.zeros(2, 12, 384)).shape
        torch.Size([2, 2304])
    """

    num_registers: Final[int]
    hidden_dim: Final[int]
    ratio: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int, hidden_dim: int, ratio: int = 2) -> None:
        out_dim = mamba_reg_width(num_registers, hidden_dim, ratio)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.ratio = ratio
        self.out_dim = out_dim
        self.neck = nn.Linear(hidden_dim, hidden_dim // ratio, bias=False)
        self.norm_neck = nn.RMSNorm(self.out_dim, eps=1e-5)
        nn.init.trunc_normal_(self.neck.weight, std=0.02)

    def flop_count(self, hidden_dim: int) -> int:
        """FLOPs for one sample: 2 per multiply-add of the compression, 4 per channel of the norm."""
        return self.num_registers * (hidden_dim // self.ratio) * (2 * hidden_dim + 4)

    def forward(self, registers: Tensor) -> Tensor:
        """Read ``registers`` ``[B, R, D]`` as ``[B, R * D / ratio]``; another shape is a ShapeError."""
        check_registers(registers, "readout 'mamba-reg'", self.num_registers, self.hidden_dim)
        compressed: Tensor = self.neck(in_dtype_of(self.norm_neck.weight, registers).contiguous())
        # under autocast it is bfloat16, for which the norm has no fast kernel with a float32 weight
        normed: Tensor = self.norm_neck(in_dtype_of(self.norm_neck.weight, compressed.flatten(1)))
        return normed

    extra_repr = show_settings
