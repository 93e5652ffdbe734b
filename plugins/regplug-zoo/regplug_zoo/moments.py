"""Readouts without parameters: sum, maximum and moments over the registers, channel by channel."""

from typing import Final

import torch
from torch import Tensor, nn

from regplug.nn import (
    check_mask,
    check_registers,
    fixed_count,
    masked_max,
    masked_mean,
    show_settings,
    zero_empty_rows,
    zero_padding,
)
from regplug_zoo.sizes import avgmax_width, max_width, mean_std_width, sum_width


class RegisterSum(nn.Module):
    """The sum of the registers: ``c = sum_r x_r``. No parameters.

    Unlike the mean it grows with R.
    Source: Deep Sets (Zaheer et al., 2017), with the identity inside and outside.

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D; ``cond_dim`` is D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterSum(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int | None, hidden_dim: int) -> None:
        out_dim = sum_width(num_registers, hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample of width ``dim``: R - 1 additions per channel; no matrix part."""
        num = fixed_count("RegisterSum", self.num_registers)
        return (num - 1) * dim

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Add ``registers`` ``[B, R, D]`` up to ``[B, D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'sum'", self.num_registers, self.hidden_dim)
        if mask is None:
            return registers.sum(dim=1)
        check_mask(mask, registers, "readout 'sum'")
        return zero_padding(registers, mask).sum(dim=1)

    extra_repr = show_settings


class RegisterMax(nn.Module):
    """The largest value of each channel: ``c = max_r x_r``. No parameters.

    Registers that tie for the maximum share its gradient evenly (``torch.amax``; ``torch.max`` gives it to one).
    Source: PointNet (Qi et al., 2017).

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D; ``cond_dim`` is D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterMax(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int | None, hidden_dim: int) -> None:
        out_dim = max_width(num_registers, hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample of width ``dim``: R - 1 comparisons per channel; no matrix part."""
        num = fixed_count("RegisterMax", self.num_registers)
        return (num - 1) * dim

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reduce ``registers`` ``[B, R, D]`` to ``[B, D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'max'", self.num_registers, self.hidden_dim)
        if mask is None:
            return registers.amax(dim=1)
        check_mask(mask, registers, "readout 'max'")
        return masked_max(zero_padding(registers, mask), mask)

    extra_repr = show_settings


class RegisterAvgMax(nn.Module):
    """Half of mean plus maximum: ``c = (mean_r x_r + max_r x_r) / 2``. No parameters.

    Registers that tie for the maximum share its gradient evenly (``torch.amax``).
    Source: timm, layers/pool1d.py, ``global_pool_nlc`` with ``pool_type="avgmax"``.

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D; ``cond_dim`` is D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterAvgMax(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int | None, hidden_dim: int) -> None:
        out_dim = avgmax_width(num_registers, hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample of width ``dim``: R for the mean, R - 1 for the maximum, 2 to join; no matrix part."""
        num = fixed_count("RegisterAvgMax", self.num_registers)
        return (2 * num + 1) * dim

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reduce ``registers`` ``[B, R, D]`` to ``[B, D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'avgmax'", self.num_registers, self.hidden_dim)
        if mask is None:
            return 0.5 * (registers.amax(dim=1) + registers.mean(dim=1))
        check_mask(mask, registers, "readout 'avgmax'")
        registers = zero_padding(registers, mask)
        return 0.5 * (masked_max(registers, mask) + masked_mean(registers, mask))

    extra_repr = show_settings


class RegisterMeanStd(nn.Module):
    """Mean and standard deviation, concatenated: ``c = [m || sqrt(mean_r (x_r - m)^2 + eps)], m = mean_r x_r``.

    The deviation is the biased one, and eps is added under the root, so R = 1 and equal registers have finite
    gradients. No parameters; 16-bit registers are computed in float32, where eps does not vanish.
    Source: x-vectors' statistics pooling (Snyder et al., 2018).

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D; ``cond_dim`` is 2 * D.
        eps: Added to the variance, positive.

    Raises:
        SpecError: A size is not a positive integer, or eps is not positive and finite.

    Example:
        >>> RegisterMeanStd(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 768])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    out_dim: Final[int]
    eps: Final[float]

    def __init__(self, num_registers: int | None, hidden_dim: int, eps: float = 1e-6) -> None:
        out_dim = mean_std_width(num_registers, hidden_dim, eps)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim
        self.eps = float(eps)

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample of width ``dim``: per channel R, then 3 for each register and 2; no matrix part."""
        num = fixed_count("RegisterMeanStd", self.num_registers)
        return (4 * num + 2) * dim

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reduce ``registers`` ``[B, R, D]`` to ``[B, 2 * D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'mean-std'", self.num_registers, self.hidden_dim)
        if mask is not None:
            check_mask(mask, registers, "readout 'mean-std'")
            registers = zero_padding(registers, mask)
        wide = registers.to(torch.promote_types(registers.dtype, torch.float32))
        mean = wide.mean(dim=1) if mask is None else masked_mean(wide, mask)
        # Tensor.var over a middle dimension is several times slower
        squares = (wide - mean.unsqueeze(1)).square()
        variance = squares.mean(dim=1) if mask is None else masked_mean(zero_padding(squares, mask), mask)
        moments = torch.cat([mean, (variance + self.eps).sqrt()], dim=1)
        if mask is not None:
            moments = zero_empty_rows(moments, mask)
        # integers would lose the fraction
        return moments.to(registers.dtype) if registers.is_floating_point() else moments

    extra_repr = show_settings
