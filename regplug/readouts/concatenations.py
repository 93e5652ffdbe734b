"""Readouts that lay the registers side by side: ``cond_dim`` grows with R, and each register keeps its place."""

from typing import Final

from torch import Tensor, nn

from regplug.readouts.check import check_registers, check_sizes, in_dtype_of


class RegisterConcat(nn.Module):
    """All registers side by side: ``c = [x_1 || ... || x_R]``. No parameters.

    Args:
        num_registers: Registers per sample, R >= 1.
        hidden_dim: Width of a register token, D; ``cond_dim`` is R * D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> import torch
        >>> RegisterConcat(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 1536])
    """

    num_registers: Final[int]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        check_sizes("RegisterConcat", num_registers=num_registers, hidden_dim=hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = num_registers * hidden_dim

    def flop_count(self, hidden_dim: int) -> int:
        """No FLOPs: it only moves numbers."""
        return 0

    def forward(self, registers: Tensor) -> Tensor:
        """Lay ``registers`` ``[B, R, D]`` side by side as ``[B, R * D]``; another shape is a ShapeError."""
        check_registers(registers, "readout 'concat'", self.num_registers, self.hidden_dim)
        return registers.flatten(1)

    def extra_repr(self) -> str:
        """The sizes, as ``print(module)`` shows them."""
        return f"num_registers={self.num_registers}, hidden_dim={self.hidden_dim}, out_dim={self.out_dim}"


class RegisterCompressConcat(nn.Module):
    """Compress each register with one shared projection, then lay them side by side.

    ``c = [W x_1 || ... || W x_R]``, W without bias. Keeps which register said what, unlike an average.
    Source: nvSubquadratic, modules/film.py, whose names and initial values it keeps; the idea is Mamba-Reg's
    (Wang et al., 2024).

    Args:
        num_registers: Registers per sample, R >= 1.
        hidden_dim: Width of a register token, D.
        compressed_dim: Width each register keeps, c; ``cond_dim`` is R * c.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> import torch
        >>> RegisterCompressConcat(4, 384, compressed_dim=96)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int]
    hidden_dim: Final[int]
    compressed_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int, hidden_dim: int, compressed_dim: int) -> None:
        check_sizes(
            "RegisterCompressConcat",
            num_registers=num_registers,
            hidden_dim=hidden_dim,
            compressed_dim=compressed_dim,
        )
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.compressed_dim = compressed_dim
        self.out_dim = num_registers * compressed_dim
        self.compress = nn.Linear(hidden_dim, compressed_dim, bias=False)

    def flop_count(self, hidden_dim: int) -> int:
        """FLOPs for one sample: 2 per multiply-add of R projections from ``hidden_dim`` to c."""
        return self.num_registers * 2 * hidden_dim * self.compressed_dim

    def forward(self, registers: Tensor) -> Tensor:
        """Read ``registers`` ``[B, R, D]`` as ``[B, R * c]``; another shape is a ShapeError."""
        check_registers(registers, "readout 'compress-concat'", self.num_registers, self.hidden_dim)
        # on a strided register slice the linear layer takes a slow path, 1.5 times the cost of copying first
        compressed: Tensor = self.compress(in_dtype_of(self.compress.weight, registers).contiguous())
        return compressed.flatten(1)

    def extra_repr(self) -> str:
        """The sizes, as ``print(module)`` shows them."""
        return (
            f"num_registers={self.num_registers}, hidden_dim={self.hidden_dim}, "
            f"compressed_dim={self.compressed_dim}, out_dim={self.out_dim}"
        )
