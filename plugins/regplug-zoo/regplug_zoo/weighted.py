"""Readouts with learned averages, channel by channel: ``cond_dim`` is D."""

import math
from typing import Final

import torch
from torch import Tensor, nn

from regplug.nn import (
    check_mask,
    check_registers,
    fixed_count,
    in_dtype_of,
    masked_mean,
    show_settings,
    zero_padding,
)
from regplug_zoo.sizes import channel_pool_width, gem_width


class RegisterGeM(nn.Module):
    """A generalised mean of signed registers, with a learned exponent p.

    ``c = sign(m) (|m| + eps)^(1/p), m = mean_r sign(x_r) |x_r|^p``: p = 1 is nearly the mean, and the larger p, the
    more the register of largest magnitude dominates. All gradients are finite; where a register or m is 0, they are 0.
    Where m changes sign, c jumps from -eps^(1/p) to eps^(1/p), by 0.02 with the defaults. 16-bit registers are
    computed in float32, because of |x|^p.

    The source clamps x to be positive; the signs of registers matter. The parameter is ``log_p``, one number, so no
    optimiser step makes p negative, and weight decay pulls p to 1, the mean.
    Source: GeM (Radenovic et al., 2018, "Fine-tuning CNN Image Retrieval with No Human Annotation"), made sign-safe.

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D; ``cond_dim`` is D.
        p: The initial exponent, positive. |x|^p must fit into float32.
        eps: Added to |m|, positive.

    Raises:
        SpecError: A size is not a positive integer, or p or eps is not positive and finite.

    Example:
        >>> RegisterGeM(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    out_dim: Final[int]
    eps: Final[float]

    def __init__(self, num_registers: int | None, hidden_dim: int, p: float = 3.0, eps: float = 1e-6) -> None:
        out_dim = gem_width(num_registers, hidden_dim, p, eps)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim
        self.eps = float(eps)
        self.log_p = nn.Parameter(torch.tensor([math.log(p)]))  # FSDP2 shards no parameter without a dimension

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample of width ``dim``: per channel 6 for each register and 4, and 2 for p; no matrix part."""
        num = fixed_count("RegisterGeM", self.num_registers)
        return (6 * num + 4) * dim + 2

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reduce ``registers`` ``[B, R, D]`` to ``[B, D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'gem'", self.num_registers, self.hidden_dim)
        if mask is not None:
            check_mask(mask, registers, "readout 'gem'")
            registers = zero_padding(registers, mask)
        registers = in_dtype_of(self.log_p, registers)
        wide = registers.to(torch.promote_types(registers.dtype, torch.float32))
        p = self.log_p.to(wide.dtype).exp()
        # the floor keeps log|x| and |x|^(p - 1) finite at 0, where sign(x) makes both vanish
        powers = wide.sign() * wide.abs().clamp(min=1e-30).pow(p)
        mean = powers.mean(dim=1) if mask is None else masked_mean(powers, mask)
        return (mean.sign() * (mean.abs() + self.eps).pow(1.0 / p)).to(registers.dtype)

    extra_repr = show_settings


class RegisterChannelPooling(nn.Module):
    """A learned average for each channel: ``c = sum_r softmax_r(w)_r * x_r``, * is elementwise.

    One logit for each register and channel, w in ``[R, D]``. The logits start at zero, so it starts as the plain
    average. ``pool`` has one weight for all channels of a register; here each channel has its own.
    Source: nvSubquadratic, modules/film.py, ``RegisterPooling``, made per channel.

    Args:
        num_registers: Registers per sample, R >= 1.
        hidden_dim: Width of a register token, D; ``cond_dim`` is D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterChannelPooling(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        out_dim = channel_pool_width(num_registers, hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim
        self.logits = nn.Parameter(torch.zeros(num_registers, hidden_dim))
        self.no_weight_decay = True  # for regplug.param_groups: a matrix, but of logits

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample of width ``dim``: 3 per logit for the softmax, 2 per weighted number; no matrix part."""
        return 5 * self.num_registers * dim

    def forward(self, registers: Tensor) -> Tensor:
        """Average ``registers`` ``[B, R, D]`` to ``[B, D]``; another shape is a ShapeError."""
        check_registers(registers, "readout 'channel-pool'", self.num_registers, self.hidden_dim)
        return (in_dtype_of(self.logits, registers) * torch.softmax(self.logits, dim=0)).sum(dim=1)

    extra_repr = show_settings
