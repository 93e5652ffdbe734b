"""Does `regplug rank` find the truth? Data sets where it is known, ranked many times; prints a table.

    python tests/recovery.py                 200 data sets of each kind
    python tests/recovery.py --runs 20 order

A data set has 240 samples of 4 classes, R=4 and D=16. The expected difference of two strategies, which their interval
should hold, is estimated by the mean over all data sets of a kind.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import torch
from torch import Tensor

import regplug
from regplug.commands.rank.entrants import Plan, Sources
from regplug.commands.rank.heads import Head
from regplug.commands.rank.run import rank_sources

COUNT, CLASSES, R, D = 240, 4, 4, 16
PLAN = Plan(Head(), seeds=2, folds=3, epochs=4)


@dataclass(frozen=True)
class Kind:
    """Data sets of which the best strategies are known.

    Args:
        what: Where the information is.
        make: From classes ``[n]`` to registers ``[n, R, D]``.
        strategies: What is ranked, with options.
        best: The strategies that are better than all others; with several, or none, no one is the winner.
    """

    what: str
    make: Callable[[Tensor, torch.Generator], Tensor]
    strategies: dict[str, tuple[str, dict[str, object]]]
    best: set[str]


def plain(*names: str) -> dict[str, tuple[str, dict[str, object]]]:
    return {name: (name, {}) for name in names}


def means(generator: torch.Generator, scale: float) -> Tensor:
    return scale * torch.randn(CLASSES, D, generator=generator)


def noise(classes: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(len(classes), R, D, generator=generator)


def in_one_register(classes: Tensor, generator: torch.Generator) -> Tensor:
    registers = noise(classes, generator)
    registers[:, 2] += means(generator, 0.6)[classes]
    return registers


def in_the_order(classes: Tensor, generator: torch.Generator) -> Tensor:
    """Every sample has the same four vectors; its class says which register has which."""
    vectors = 0.6 * torch.randn(R, D, generator=generator)
    return noise(classes, generator) + vectors[(torch.arange(R) + classes[:, None]) % R]


def in_second_moments(classes: Tensor, generator: torch.Generator) -> Tensor:
    return noise(classes, generator) * (1 + 0.6 * torch.rand(CLASSES, 1, D, generator=generator))[classes]


def nowhere(classes: Tensor, generator: torch.Generator) -> Tensor:
    return noise(classes, generator)


def in_each_register_alike(classes: Tensor, generator: torch.Generator) -> Tensor:
    return noise(classes, generator) + means(generator, 0.4)[classes][:, None]


KINDS = {
    "register": Kind("in one register", in_one_register, plain("mean", "max", "mean-std", "concat"), {"concat"}),
    "order": Kind("in the registers' order", in_the_order, plain("mean", "max", "mean-std", "concat"), {"concat"}),
    "moments": Kind("in second moments", in_second_moments, plain("mean", "pool", "concat", "mean-std"), {"mean-std"}),
    "nowhere": Kind("nowhere", nowhere, plain("mean", "max", "mean-std", "pool", "concat"), set()),
    "alike": Kind(
        "in each register alike, read one by one",
        in_each_register_alike,
        {f"register {index}": ("select-concat", {"indices": [index]}) for index in range(R)},
        {f"register {index}" for index in range(R)},
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What one ranking said: the winner, whether there was information, and each pair's difference and interval."""

    winner: str | None
    may_be_best: frozenset[str]
    informative: bool
    pairs: Tensor  # [pairs, 3]: difference, low, high


def outcome(name: str, seed: int) -> Outcome:
    """Rank one data set."""
    kind = KINDS[name]
    generator = torch.Generator().manual_seed(10_000 + seed)
    classes = torch.randint(0, CLASSES, (COUNT,), generator=generator)
    specs = [
        regplug.resolve(strategy, num_registers=R, hidden_dim=D, **options)
        for strategy, options in kind.strategies.values()
    ]
    sources = Sources({"registers": kind.make(classes, generator)}, classes, CLASSES, None, "")
    found = rank_sources(specs, sources, PLAN, facts={}, runtimes=(), jobs=1)
    if found.comparison is None:
        raise RuntimeError(found.sentence)
    names = dict(zip(found.comparison.names, kind.strategies, strict=False))
    pairs = [
        [one.difference, one.low, one.high]
        for one in found.comparison.pairs
        if one.second < found.comparison.candidates
    ]
    return Outcome(
        names.get(found.winner or ""),
        frozenset(names[one] for one in found.may_be_best),
        found.informative,
        torch.tensor(pairs),
    )


def row(kind: Kind, outcomes: list[Outcome]) -> tuple[str, ...]:
    """A line of the table."""
    pairs = torch.stack([one.pairs for one in outcomes])  # [runs, pairs, 3]
    truth = pairs[..., 0].mean(0)
    holds = (pairs[..., 1] <= truth) & (truth <= pairs[..., 2])
    right = {
        0: [not one.informative for one in outcomes],
        1: [one.winner in kind.best for one in outcomes],
    }.get(len(kind.best), [one.winner is None and one.informative for one in outcomes])
    false = [one.winner is not None and (len(kind.best) != 1 or one.winner not in kind.best) for one in outcomes]
    kept = [kind.best <= one.may_be_best for one in outcomes]
    truths = {0: "no information", 1: f"{min(kind.best, default='')} wins"}
    return (
        kind.what,
        truths.get(len(kind.best), "no difference"),
        percent(right),
        percent(false),
        percent(kept),
        percent(holds.flatten().tolist()),
        percent(holds.all(1).tolist()),
    )


def percent(values: list[bool]) -> str:
    return f"{100 * sum(values) / len(values):.1f} %"


HEADS = ("information", "truth", "said", "false winner", "best kept", "an interval holds", "all intervals hold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], help="all by default")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()
    lines = [HEADS]
    with ProcessPoolExecutor(chosen.jobs, mp_context=get_context("spawn")) as pool:
        for name in chosen.kinds or KINDS:
            found = list(pool.map(partial(outcome, name), range(chosen.runs), chunksize=5))
            lines.append(row(KINDS[name], found))
            print(" | ".join(lines[-1]), file=sys.stderr)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
