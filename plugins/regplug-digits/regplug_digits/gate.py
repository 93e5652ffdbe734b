"""The readout that this plugin brings: ``digits-gate``."""

# TorchScript reads Final[...] only when annotations are not postponed
from typing import Final

import torch
from torch import Tensor, nn

from regplug.nn import check_registers, in_dtype_of, show_settings

from .sizes import gate_width


class DigitsGate(nn.Module):
    """An average of the registers, each gated feature by feature by its content.

    ``c = (1 / R) sum_r sigmoid(W x_r + b_r) * x_r``: one projection W for all registers, one bias b_r for
    each. ``pool`` has the same weights for every sample; here the weight depends on the register's content.
    Source: the gated linear unit (Dauphin et al., 2017, "Language Modeling with Gated Convolutional
    Networks"), with the register itself as the linear branch.

    Args:
        num_registers: Registers per sample, R >= 1.
        hidden_dim: Width of a register token, D >= 1; ``out_dim`` is D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> DigitsGate(num_registers=4, hidden_dim=48)(torch.zeros(2, 4, 48)).shape
        torch.Size([2, 48])
    """

    num_registers: Final[int]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        out_dim = gate_width(num_registers, hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim
        self.gate = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(num_registers, hidden_dim))

    def forward(self, registers: Tensor) -> Tensor:
        """Read ``registers`` ``[B, R, D]`` into a conditioning vector ``[B, D]``.

        Raises:
            ShapeError: ``registers`` has other sizes than the readout was built for.
        """
        check_registers(registers, "readout 'digits-gate'", self.num_registers, self.hidden_dim)
        registers = in_dtype_of(self.bias, registers)
        return (torch.sigmoid(self.gate(registers) + self.bias) * registers).mean(dim=1)

    extra_repr = show_settings
