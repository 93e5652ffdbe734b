"""What readouts do with a mask of the tokens that count, eager, scripted and compiled."""

# TorchScript reads ``Tensor | None`` only when annotations are not postponed
import torch
from torch import Tensor
from torch.jit import is_scripting  # type: ignore[attr-defined]

from regplug.errors import ShapeError
from regplug.torch_private import is_plain


def check_mask(mask: Tensor, registers: Tensor, owner: str) -> Tensor:
    """Refuse a mask that is not ``[B, N]``, bool, and on the device of the registers ``[B, N, D]``.

    A sample without any token that counts is refused where that can be read without waiting: in eager or scripted
    code, in CPU memory. Elsewhere its vector is zeros (``zero_empty_rows``).

    Args:
        mask: True where a token counts.
        registers: What it is for, after ``check_registers``.
        owner: The readout, as ``"readout 'mean'"``.

    Returns:
        How many tokens count in each sample, ``[B, 1]``; 1 where none does.

    Raises:
        ShapeError: It does not fit.
    """
    batch, count = registers.shape[0], registers.shape[1]
    if not registers.is_floating_point():
        raise ShapeError(
            f"{owner}: expected registers of a floating-point dtype with a mask, got {name_of_dtype(registers)}."
        )
    if mask.dtype != torch.bool:
        raise ShapeError(f"{owner}: mask: expected dtype bool, got {name_of_dtype(mask)}.")
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] != count:
        raise ShapeError(f"{owner}: expected mask [{batch}, {count}], got {list(mask.shape)}.")
    if mask.device != registers.device:
        raise ShapeError(f"{owner}: mask: expected device {registers.device}, got {mask.device}.")
    counted = _count(mask)
    if not is_readable(mask):
        return counted.clamp(min=1)
    # a list: min and item take twice as long at B = 1, and nothing of a larger batch's forward
    counts: list[float] = counted.squeeze(1).tolist()
    if 0.0 in counts:
        raise ShapeError(
            f"{owner}: mask: expected a token that counts in every sample, got none in sample {counts.index(0.0)}."
        )
    return counted


def _count(mask: Tensor) -> Tensor:
    # as float32: dividing by integers converts them each time, 1 us or 6 % of a masked mean at B = 1
    return mask.sum(dim=1, keepdim=True, dtype=torch.float32)


def is_readable(mask: Tensor) -> bool:
    """Whether code may branch on the mask's values: not in a graph, inside torch.vmap, or where it would wait."""
    if is_scripting():
        return mask.device.type == "cpu"
    return not torch.compiler.is_compiling() and is_plain(mask)


def name_of_dtype(mask: Tensor) -> str:
    """The dtype for a message, as ``int32``."""
    if not is_scripting():
        return _name_in_python(mask)
    names = ["uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]  # a number there
    code: int = mask.dtype  # type: ignore[assignment]
    return names[code] if code < len(names) else "another"


def _name_in_python(mask: object) -> str:
    """The same in Python, where a mask may be an array of another library."""
    return str(mask.dtype).replace("torch.", "") if isinstance(mask, Tensor) else type(mask).__name__


def zero_padding(tokens: Tensor, mask: Tensor) -> Tensor:
    """``tokens`` ``[B, N, K]`` with zeros where the mask is false, also in place of NaN; no gradient reaches them."""
    return torch.where(mask.unsqueeze(2), tokens, 0)


def masked_mean(tokens: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """The mean ``[B, K]`` of the tokens that count; the others are zeros (``zero_padding``). Of none: zeros.

    16-bit tokens are summed in float32, as ``Tensor.mean`` does it.

    Args:
        tokens: ``[B, N, K]``.
        mask: ``[B, N]``, true where a token counts.
        count: What ``check_mask`` returned for this mask; None to count again.
    """
    if count is None:
        count = _count(mask).clamp(min=1)
    if tokens.dtype == torch.float32 or tokens.dtype == torch.float64:
        return tokens.sum(dim=1) / count
    mean = tokens.sum(dim=1, dtype=torch.float32) / count
    return mean.to(tokens.dtype) if tokens.is_floating_point() else mean


def masked_max(tokens: Tensor, mask: Tensor) -> Tensor:
    """The largest value ``[B, K]`` among the tokens that count. Of none: zeros."""
    return zero_empty_rows(tokens.masked_fill(~mask.unsqueeze(2), float("-inf")).amax(dim=1), mask)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Weights ``[B, N, K]`` that sum to 1 over the tokens that count, from their scores; the others get exactly 0."""
    return torch.softmax(scores.masked_fill(~never_empty(mask).unsqueeze(2), float("-inf")), dim=1)


def attention_mask(mask: Tensor) -> Tensor:
    """The mask as ``scaled_dot_product_attention`` takes it, ``[B, 1, 1, N]``."""
    return never_empty(mask).unsqueeze(1).unsqueeze(1)


def never_empty(mask: Tensor) -> Tensor:
    """The mask, with all tokens of a sample in which none counts: a softmax over none is NaN, here and in gradients."""
    return mask | ~mask.any(dim=1, keepdim=True)


def zero_empty_rows(vectors: Tensor, mask: Tensor) -> Tensor:
    """``vectors`` ``[B, K]`` with zeros, and no gradient, for samples in which no token counts."""
    return torch.where(mask.any(dim=1, keepdim=True), vectors, 0)
