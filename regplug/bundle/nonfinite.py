"""Numbers that are none: whether NaN, infinity and overflow come out of a program as they do out of the module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from regplug.backends.interface import flatten
from regplug.bundle.golden import SEED, double_of

CLOSE = 1e-2  # of a sample's largest number: another number altogether, not another rounding
BATCH = 3  # the first sample has what is not finite; the others must not notice

Run = Callable[[Tensor], Sequence[Tensor]]


def with_nan(shape: Sequence[int], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Inputs whose first sample holds a NaN, each with its name.

    Args:
        shape: The sizes after the batch: ``[R, D]`` for registers.
        dtype: The module's.
    """
    one = _drawn(shape, dtype)
    one[0].view(-1)[-1] = math.nan
    yield "a NaN", one
    several = _drawn(shape, dtype)
    several[0, 0] = math.nan
    yield "a register of NaN", several


def with_infinity(shape: Sequence[int], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """As ``with_nan``, with an infinity."""
    for name, value in (("an infinity", math.inf), ("a negative infinity", -math.inf)):
        given = _drawn(shape, dtype)
        given[0].view(-1)[0] = value
        yield name, given


def near_the_largest(shape: Sequence[int], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """As ``with_nan``, with numbers whose squares overflow: 1e37 for float32."""
    given = _drawn(shape, dtype)
    given[0] *= torch.finfo(dtype).max / 32
    yield "numbers near the largest", given


def _drawn(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn((BATCH, *shape), generator=generator, dtype=torch.float64, device="cpu").to(dtype)


def lost_nan(run: Run, module: nn.Module, given: Tensor) -> float | None:
    """A number that a program gives where the module gives NaN; None where there is none, or one refuses the input."""
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            eager, got = flatten(module(given.clone())), run(given)
    except Exception:  # as linear algebra does with NaN: an error is no number
        return None
    for mine, theirs in zip(got, eager, strict=True):
        lost = theirs.isnan() & mine.isfinite()
        if bool(lost.any()):
            return mine[lost][0].item()
    return None


def fault_of(run: Run, module: nn.Module, given: Tensor) -> str | None:
    """What a program makes of such an input and must not; None where all is well.

    The truth is a float64 forward of the module. Three things are wrong: a number where truth has none, for then nobody
    notices; a number that is neither the truth's nor eager's; and none where both have one, for then a sample spoils
    another. An overflow that shows itself is not wrong, nor is a number where only eager has none.

    Args:
        run: The program; gives the flat outputs.
        module: In eval mode, on the CPU.
        given: Its input.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        got = [out.double() for out in run(given)]
        eager = [out.double() for out in flatten(module(given.clone()))]
        double = double_of(module, given.dtype, list(given.shape))
        truth = eager if double is None else flatten(double(given.double()))
    for mine, theirs, wanted in zip(got, eager, truth, strict=True):
        if bool((wrong := mine.isfinite() & ~wanted.isfinite()).any()):
            return f"expected NaN or infinity, got {mine[wrong][0].item():.3g}"
        if bool((wrong := wanted.isfinite() & theirs.isfinite() & ~mine.isfinite()).any()):
            return f"expected {wanted[wrong][0].item():.3g}, got {mine[wrong][0].item()}"
        wrong = mine.isfinite() & ~_is_close(mine, wanted) & ~_is_close(mine, theirs)
        if bool(wrong.any()):
            return f"expected {wanted[wrong][0].item():.3g}, got {mine[wrong][0].item():.3g}"
    return None


def _is_close(got: Tensor, wanted: Tensor) -> Tensor:
    """Where numbers agree, to a part of each sample's largest."""
    scale = wanted.where(wanted.isfinite(), 0).abs().amax(-1, keepdim=True)
    return (got - wanted).abs() <= CLOSE * scale
