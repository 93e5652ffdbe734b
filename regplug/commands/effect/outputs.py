"""How far outputs are apart: numbers from two forward passes of the same batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """What an output's changes are compared with.

    Args:
        spread: The mean distance between the outputs of two samples.
        size: The mean norm of an output.
        eps: The relative resolution of its dtype.
    """

    spread: float
    size: float
    eps: float


def rows(tensor: Tensor, batch: int) -> Tensor:
    """One row of numbers for each sample, in double precision; the whole tensor as one row if it has none."""
    flat = tensor.detach().double()
    if flat.dim() and flat.shape[0] % batch == 0 and flat.shape[0]:
        return flat.reshape(batch, -1)
    return flat.reshape(1, -1)


def scale_of(tensor: Tensor, batch: int) -> Scale:
    """The scale of one output."""
    flat = rows(tensor, batch)
    count = flat.shape[0]
    far = torch.cdist(flat, flat) if count > 1 else flat.new_zeros(1, 1)
    spread = float(far.sum() / max(1, count * (count - 1)))
    return Scale(spread, float(flat.norm(dim=1).mean()), torch.finfo(tensor.dtype).eps)


def varies(tensor: Tensor, batch: int) -> bool:
    """Whether the samples' rows differ by more than rounding."""
    if not tensor.is_floating_point():
        flat = tensor.reshape(tensor.shape[0], -1) if tensor.dim() else tensor.reshape(1, 1)
        return bool((flat != flat[:1]).any())
    flat = rows(tensor, batch)
    low, high = flat.min(dim=0).values, flat.max(dim=0).values
    return bool((high - low).max() > 32 * torch.finfo(tensor.dtype).eps * flat.abs().max()) if flat.numel() else False


def effect_between(before: Sequence[Tensor], after: Sequence[Tensor], batch: int) -> float | None:
    """The mean change of a sample's output, relative to the spread of outputs; the largest of several outputs.

    None if there are none, or if they are others in number or in shape, or not finite.
    """
    return _largest(before, after, batch, attrgetter("spread"))


def change_between(before: Sequence[Tensor], after: Sequence[Tensor], batch: int) -> float | None:
    """The mean change of a sample's output, relative to the size of outputs."""
    return _largest(before, after, batch, attrgetter("size"))


def _largest(
    before: Sequence[Tensor], after: Sequence[Tensor], batch: int, measure_of: Callable[[Scale], float]
) -> float | None:
    if not before or len(before) != len(after) or any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
        return None
    found = 0.0
    for one, other in zip(before, after, strict=True):
        scale = scale_of(one, batch)
        far = float((rows(one, batch) - rows(other, batch)).norm(dim=1).mean())
        measure = measure_of(scale)
        if not math.isfinite(far + measure):
            return None
        if measure > 32 * scale.eps * scale.size:
            found = max(found, far / measure)
        elif far > 32 * scale.eps * scale.size:  # the output is the same for all samples, and changes now
            found = max(found, far / scale.size if scale.size else 1.0)
    return found


def relative(before: Tensor, after: Tensor) -> float:
    """The size of a change relative to the size of what changes."""
    size = float(before.double().norm())
    far = float((before.double() - after.double()).norm())
    return far / size if size else float(far > 0)
