"""What ``regplug bench`` measures, and its results: plain data, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MODES = ("eager", "torchscript", "compile")
PASSES = ("forward", "inference", "forward+backward")
PLACES = ("contiguous", "slice")
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")
ROUNDING = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}  # how much rounding lets equal outputs differ


@dataclass(frozen=True)
class Spread:
    """A median between its quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Side:
    """The results of one of the two sides in a row.

    Args:
        microseconds: The time of one call; None if it failed.
        bandwidth_share: The share of the measured copy bandwidth; None if nothing is moved, or with backward.
        gemm_share: The share of the measured rate of matrix products; None without ``flop_count``, or with backward.
        failed: Why it does not run in this mode.
    """

    microseconds: Spread | None = None
    bandwidth_share: float | None = None
    gemm_share: float | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Row:
    """One combination, measured.

    Args:
        mode: One of ``MODES``.
        work: One of ``PASSES``; ``forward`` is under ``no_grad``.
        registers: One of ``PLACES``.
        num_registers: R.
        batch: B.
        ours: The strategy.
        other: The other module, or ours in eager mode; None where ours is eager and alone.
        ratio: How many times faster than the other.
        rounds: The number of pairs of blocks that were measured.
        difference: The largest difference between the sides' outputs and gradients, relative to the largest value; None
            if they were not compared.
        difference_note: Why they were not.
    """

    mode: str
    work: str
    registers: str
    num_registers: int
    batch: int
    ours: Side
    other: Side | None = None
    ratio: Spread | None = None
    rounds: int = 0
    difference: float | None = None
    difference_note: str | None = None


@dataclass(frozen=True)
class Plan:
    """What to measure; the fields are the options of ``regplug bench``.

    Args:
        batches: The values of B.
        tokens: N, the length of the sequence that a register slice is taken from.
        modes: Of ``MODES``.
        dtype: One of ``DTYPES``.
        device: One of ``DEVICES``.
        threads: Threads of one operation on the CPU.
        rounds: Pairs of blocks per row; None for as many as half a second allows.
    """

    batches: Sequence[int]
    tokens: int = 197
    modes: Sequence[str] = MODES
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    rounds: int | None = None


@dataclass(frozen=True)
class CopyRate:
    """The copy bandwidth at one size: bytes read plus bytes written, per second."""

    num_registers: int
    batch: int
    bytes_per_second: float


@dataclass(frozen=True)
class Report:
    """The results, and the machine.

    Args:
        strategy: Full name.
        options: The strategy's options.
        against: The other module's name, as the user gave it.
        sizes: R and ``cond_dim`` (one number for each R), and D.
        plan: What was to be measured.
        machine: Names and versions.
        gemm_flops_per_second: The measured rate of matrix products.
        copies: The measured copy bandwidths.
        rows: The rows, by mode, R, work, registers, batch.
    """

    strategy: str
    options: Mapping[str, Any]
    against: str | None
    sizes: Mapping[str, Any]
    plan: Plan
    machine: Mapping[str, Any]
    gemm_flops_per_second: float
    copies: Sequence[CopyRate]
    rows: Sequence[Row]


HEADS = (
    *("mode", "work", "registers", "R", "B", "times faster", "quartiles", "ours us", "other us"),
    *("ours/copy", "other/copy", "ours/gemm", "other/gemm", "difference"),
)


def cells(row: Row) -> tuple[str, ...]:
    """The row as text, under ``HEADS``; a dash where a column does not apply."""
    other = row.other or Side()
    return (
        row.mode,
        row.work,
        row.registers,
        str(row.num_registers),
        str(row.batch),
        f"{row.ratio.median:.2f}" if row.ratio else "-",
        f"{row.ratio.low:.2f}..{row.ratio.high:.2f}" if row.ratio else "-",
        _time(row.ours),
        _time(other),
        _percent(row.ours.bandwidth_share),
        _percent(other.bandwidth_share),
        _percent(row.ours.gemm_share),
        _percent(other.gemm_share),
        row.difference_note or ("-" if row.difference is None else f"{row.difference:.1e}"),
    )


def title(report: Report) -> str:
    """What was compared."""
    return f"{report.strategy} against {report.against or 'itself in eager mode'}"


def environment(report: Report) -> str:
    """Sizes and machine, in one line."""
    options = "".join(f", {option}={value}" for option, value in report.options.items())
    machine, plan = report.machine, report.plan
    threads = f"{plan.threads} thread{'s' * (plan.threads > 1)} of " if plan.device == "cpu" else ""
    return (
        f"D={report.sizes['hidden_dim']}{options}, {plan.dtype}, slices of N={plan.tokens} tokens; "
        f"{threads}{machine[plan.device]}, torch {machine['torch']}"
    )


def failed(row: Row) -> bool:
    """Whether one of its sides failed."""
    return row.ours.failed is not None or (row.other is not None and row.other.failed is not None)


def failures(report: Report) -> list[str]:
    """Why sides failed in a mode; each reason once."""
    sides = [
        (row.mode, row.work, name, side.failed)
        for row in report.rows
        for name, side in (("ours", row.ours), ("other", row.other))
        if side is not None and side.failed is not None
    ]
    return [f"failed: {mode}, {work}, {name}: {reason}" for mode, work, name, reason in dict.fromkeys(sides)]


def mismatches(report: Report) -> list[str]:
    """One line if the other's outputs differ, because a ratio says little then."""
    apart = max((row.difference for row in report.rows if row.difference is not None), default=0.0)
    if apart > ROUNDING[report.plan.dtype]:
        return [f"not the same: with equal weights the outputs differ by up to {apart:.1e} of the largest"]
    return []


def _time(side: Side) -> str:
    if side.microseconds is None:
        return "failed" if side.failed else "-"
    return f"{side.microseconds.median:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
