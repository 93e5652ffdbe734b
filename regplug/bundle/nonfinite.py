"""Compares a program with its module on inputs with NaN, infinity and overflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from regplug.backends.interface import flatten
from regplug.bundle.golden import SEED, double_of

CLOSE = 1e-2  # relative to a sample's largest number: a wrong number, not a rounding error
BATCH = 3  # only the first sample is not finite; it must not affect the others

Run = Callable[..., Sequence[Tensor]]


def with_nan(shape: Sequence[int], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Inputs whose first sample holds a NaN, each with its name.

    Args:
        shape: The sizes after the batch: ``[R, D]`` for registers.
        dtype: The module's dtype.
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


def lost_nan(
    run: Run, eager_run: Callable[[Sequence[Tensor]], Sequence[Tensor]], inputs: Sequence[Tensor]
) -> float | None:
    """A number that a program returns instead of the module's NaN; None if there is none, or one refuses the inputs."""
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            eager, got = eager_run([one.clone() for one in inputs]), run(*inputs)
    except Exception:  # linear algebra may refuse NaN: an error is not a number
        return None
    for mine, theirs in zip(got, eager, strict=True):
        lost = theirs.isnan() & mine.isfinite()
        if bool(lost.any()):
            return mine[lost][0].item()
    return None


def fault_of(run: Run, module: nn.Module, given: Tensor) -> str | None:
    """What is wrong with a program's outputs for such an input; None if nothing is.

    The truth is a float64 forward of the module. Three things are wrong: a finite number where the truth is not finite,
    because a broken input goes unnoticed; a number that is neither the truth's nor eager's; and a number that is not
    finite where both are, because one sample then affects another. A visible overflow is not wrong, nor is a finite
    number where only eager is not finite.

    Args:
        run: The program; returns the flat outputs.
        module: In eval mode, on the CPU.
        given: The input.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        got = [out.double() for out in run(given)]
        eager = [out.double() for out in flatten(module(given.clone()))]
        double = double_of(module, [given])
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
    """Where numbers agree, relative to each sample's largest number."""
    scale = wanted.where(wanted.isfinite(), 0).abs().amax(-1, keepdim=True)
    return (got - wanted).abs() <= CLOSE * scale
