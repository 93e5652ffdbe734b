"""A readout for a time, or another vector of few numbers: sines and cosines of many periods."""

import math
from typing import Final

import torch
from torch import Tensor, nn

from regplug.nn import check_registers, show_settings
from regplug_zoo.sizes import sinusoidal_width


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of each number, as a diffusion model reads its time. No parameters.

    ``c = [e(x_11) || ... || e(x_RD)], e(t) = [sin(w_k t) || cos(w_k t)], w_k = max_period^(-k / (dim / 2 - 1))``,
    with k from 0 to dim / 2 - 1. For the vector ``time`` of a join, ``time=(1, "sinusoidal", {"dim": 128})``, it reads
    one number: a step, such as 0 to 99, or a time in [0, 1], for which a smaller ``max_period`` wastes fewer numbers.

    Periods and order are those of the diffusion models; the transformer's exponent is ``k / (dim / 2)``, and its sines
    and cosines alternate. 16-bit numbers are computed in float32, and large steps need that: bfloat16 cannot hold 257.
    Source: Vaswani et al., 2017 (arXiv:1706.03762); Ho et al., 2020 (arXiv:2006.11239), whose order this is.

    Args:
        num_registers: Registers per sample, R >= 1; 1 for a vector of a join.
        hidden_dim: Width of a register token, D; 1 for a time.
        dim: Width of each number's embedding, even; ``cond_dim`` is R * D * dim.
        max_period: The longest period is 2 pi times this.

    Raises:
        SpecError: A size is not a positive integer, ``dim`` is odd, or ``max_period`` is not a positive,
            finite number.

    Example:
        >>> SinusoidalEmbedding(1, 1, dim=128)(torch.zeros(2, 1, 1)).shape
        torch.Size([2, 128])
    """

    num_registers: Final[int]
    hidden_dim: Final[int]
    dim: Final[int]
    max_period: Final[float]
    out_dim: Final[int]

    def __init__(self, num_registers: int, hidden_dim: int, dim: int, max_period: float = 10000.0) -> None:
        out_dim = sinusoidal_width(num_registers, hidden_dim, dim, max_period)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.dim = dim
        self.max_period = float(max_period)
        self.out_dim = out_dim

    def flop_count(self, hidden_dim: int) -> int:
        """FLOPs for one sample: dim / 2 products and dim sines and cosines per number; no matrix part."""
        return self.num_registers * hidden_dim * (self.dim // 2 + self.dim)

    def forward(self, registers: Tensor) -> Tensor:
        """Read ``registers`` ``[B, R, D]`` as ``[B, R * D * dim]``; another shape is a ShapeError."""
        check_registers(registers, "readout 'sinusoidal'", self.num_registers, self.hidden_dim)
        wide = registers.to(torch.promote_types(registers.dtype, torch.float32))
        half = self.dim // 2
        exponents = torch.arange(half, dtype=wide.dtype, device=wide.device) / max(half - 1, 1)
        angles = wide.unsqueeze(-1) * torch.exp(-math.log(self.max_period) * exponents)
        answer = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
        # integers would lose the fraction
        return answer.to(registers.dtype) if registers.is_floating_point() else answer

    extra_repr = show_settings
