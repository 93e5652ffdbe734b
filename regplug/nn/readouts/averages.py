"""Readouts that average the registers: ``cond_dim`` is D, and the result no longer says which register held what."""

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from regplug.nn.printing import show_settings
from regplug.nn.readouts.checks import check_registers, in_dtype_of
from regplug.nn.readouts.masking import check_mask, masked_mean, zero_padding
from regplug.nn.readouts.sizes import fixed_count, mean_width, pool_width
from regplug.torch_private import in_compute_dtype, parameter_of


class RegisterMean(nn.Module):
    """The plain average of the registers: ``c = (1 / R) sum_r x_r``. No parameters.

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D; ``cond_dim`` is D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterMean(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    out_dim: Final[int]
    _has_one: Final[bool]

    def __init__(self, num_registers: int | None, hidden_dim: int) -> None:
        out_dim = mean_width(num_registers, hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim
        self._has_one = num_registers == 1

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample of width ``dim``: R - 1 additions and one division per channel; none for R = 1."""
        num = fixed_count("RegisterMean", self.num_registers)
        return num * dim if num > 1 else 0

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Average ``registers`` ``[B, R, D]`` to ``[B, D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'mean'", self.num_registers, self.hidden_dim)
        if mask is None:
            # the mean of one token is that token, as a view in a fifth of the time; integers have no mean in torch
            if self._has_one and registers.is_floating_point():
                return registers.squeeze(1)
            return registers.mean(dim=1)
        count = check_mask(mask, registers, "readout 'mean'")
        return masked_mean(zero_padding(registers, mask), mask, count)

    extra_repr = show_settings


# numbers in the registers from which a faster backward is worth the 50 us that Python takes for it
LARGE = 1 << 20


def weighted_sum(weights: Tensor, registers: Tensor) -> Tensor:
    """``sum_r w_r x_r`` of weights ``[R]`` and registers ``[B, R, D]``: ``[B, D]``."""
    # a batched product is 1.7 to 3.5 times faster than einsum("r,brc->bc") and gives the same bits
    return torch.bmm(weights.expand(registers.shape[0], 1, -1), registers).squeeze(1)


class WeightedSum(torch.autograd.Function):
    """``weighted_sum`` with a faster backward: 1.13 to 1.26 times, with the forward, from a million numbers on.

    bmm's own backward computes an outer product as a matrix product, slower than multiplying by element.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor, registers: Tensor) -> Tensor:
        """``[B, D]``."""
        return weighted_sum(weights, registers)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what backward and forward-mode gradients need."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The gradients with respect to weights and registers."""
        weights, registers = ctx.saved_tensors
        gradient = gradients[0].to(registers.dtype).unsqueeze(1)  # under autocast it comes as bfloat16
        of_weights, of_registers = ctx.needs_input_grad
        return (
            torch.bmm(gradient, registers.transpose(1, 2)).sum((0, 1), dtype=weights.dtype) if of_weights else None,
            gradient * weights.unsqueeze(1) if of_registers else None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        """The tangent of the sum."""
        weights, registers = ctx.saved_tensors
        by_weights, by_registers = tangents
        parts = [weighted_sum(by_weights, registers)] if by_weights is not None else []
        parts += [weighted_sum(weights, by_registers)] if by_registers is not None else []
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def weighted_sum_to_train(weights: Tensor, registers: Tensor) -> Tensor:
    """``weighted_sum``, with the faster backward where it pays; a compiler finds its own."""
    if torch.compiler.is_compiling() or registers.numel() < LARGE:
        return weighted_sum(weights, registers)
    pooled: Tensor = WeightedSum.apply(weights, registers)
    return pooled


class RegisterPooling(nn.Module):
    """A learned average: ``c = sum_r softmax(w)_r x_r``, with one logit per register.

    The logits start at zero, so it starts as the plain average. They are tagged ``_no_weight_decay``.
    Source: nvSubquadratic, modules/film.py. The parameter's name and tags are the same.

    Args:
        num_registers: Registers per sample, R >= 1.
        hidden_dim: Width of a register token, D; then ``cond_dim`` is D, and other widths are refused. None takes
            any width, as the source does.

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
        out_dim = pool_width(num_registers, hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim
        self.logits = nn.Parameter(torch.zeros(num_registers))
        self.logits._no_weight_decay = True  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        # a copied or unpickled parameter loses its tags, and nvSubquadratic's LazyConfig copies every readout
        super().__setstate__(state)
        self.logits._no_weight_decay = True  # type: ignore[attr-defined]

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample of width ``dim``: 3R for the softmax, 2 per multiply-add of the sum."""
        return 3 * self.num_registers + 2 * self.num_registers * dim

    def forward(self, registers: Tensor) -> Tensor:
        """Average ``registers`` ``[B, R, D]`` to ``[B, D]``; another shape is a ShapeError."""
        hidden_dim = self.hidden_dim
        if hidden_dim is None:
            hidden_dim = registers.shape[-1] if registers.dim() > 0 else 0
        check_registers(registers, "readout 'pool'", self.num_registers, hidden_dim)
        if is_scripting():
            return weighted_sum(self.logits.softmax(0), in_dtype_of(self.logits, registers))
        logits = parameter_of(self, "logits")  # 1.2 times faster at B = 1 than by self.logits
        registers = in_compute_dtype(registers, logits)
        weights = logits.softmax(0)
        if torch.is_grad_enabled():
            return weighted_sum_to_train(weights, registers)
        return weighted_sum(weights, registers)

    extra_repr = show_settings
