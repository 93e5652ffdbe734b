"""Ranks strategies: trains each in every fold of every split, compares the scores, and adds what each costs."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regplug.commands.rank.choices import CONSTANT, DEFAULT_RUNTIMES
from regplug.commands.rank.costs import costs_of
from regplug.commands.rank.entrants import Entrant, Plan, Sources, Task, key_of
from regplug.commands.rank.notes import notes_on
from regplug.commands.rank.probe import Scored
from regplug.commands.rank.ranking import REFERENCE, STRATEGY, RankedRow, Ranking
from regplug.commands.rank.results import Results
from regplug.commands.rank.statistics import LEVEL, Comparison, compare_scores
from regplug.commands.rank.workers import run_here, run_in_processes
from regplug.commands.worker_processes import usable_cores
from regplug.errors import SpecError
from regplug.registry.default import default_registry
from regplug.registry.layout import REGISTERS
from regplug.registry.references import Reference
from regplug.registry.registry import Registry
from regplug.registry.spec import ReadoutSpec

REFERENCES = {"cls": "class token", "patches": "mean of patches"}


def rank_sources(
    specs: Sequence[ReadoutSpec],
    sources: Sources,
    plan: Plan,
    *,
    facts: Mapping[str, Any],
    runtimes: Sequence[str] = DEFAULT_RUNTIMES,
    margin: float | None = None,
    jobs: int | None = None,
    results: Path | None = None,
    registry: Registry | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Ranking:
    """Rank strategies on samples; the arguments are checked.

    Args:
        specs: The strategies.
        sources: The samples.
        plan: How they are trained.
        facts: Where the samples come from, for the report.
        runtimes: Where a call is timed.
        margin: A difference of scores that does not matter.
        jobs: Processes; as many as there are cores when None. Strategies that other processes cannot import are
            trained in this one.
        results: The folder that keeps each training's scores; None for none.
        registry: Where export backends are looked up.
        progress: Called with each step.
    """
    references = [
        Entrant(name, _identity(sources.tokens[source].shape[2]), source)
        for source, name in REFERENCES.items()
        if source in sources.tokens and plan.head.film is None
    ]
    strategies = [Entrant(name, spec) for name, spec in zip(names_of(specs), specs, strict=True)]
    entrants = [*strategies, *references, Entrant(CONSTANT, None)]
    found, errors = _train_all(entrants, plan, sources, jobs, Results(results), progress)
    trained = [one for one in entrants if one.name in found]
    candidates = sum(one in strategies for one in trained)
    comparison = None
    if candidates:
        scores = torch.stack([found[one.name].scores for one in trained], 2)
        names, widths = [one.name for one in trained], [one.width for one in trained]
        comparison = compare_scores(scores, names, widths, plan.folds, candidates=candidates, groups=sources.groups)
    progress("costs")
    costs = costs_of(
        [one.spec for one in strategies if one.name in found and one.spec], runtimes, registry or default_registry()
    )
    cost_of = dict(zip([one.name for one in strategies if one.name in found], costs, strict=True))
    is_classes = not sources.targets.is_floating_point()
    rows = _rows(entrants, strategies, found, errors, comparison, cost_of, is_classes)
    return Ranking(
        facts=facts,
        metric="accuracy" if is_classes else "R2",
        plan=plan.as_dict(),
        rows=rows,
        comparison=comparison,
        informative=comparison is not None and _is_informative(comparison),
        margin=margin,
        notes=notes_on(plan, rows, comparison, facts),
    )


def names_of(specs: Sequence[ReadoutSpec]) -> list[str]:
    """Short names, with options where the same strategy comes twice."""
    plain = [spec.entry.name for spec in specs]
    twice = {name for name, count in Counter(plain).items() if count > 1}
    names = []
    for name, spec in zip(plain, specs, strict=True):
        options = ", ".join(f"{key}={value}" for key, value in spec.options.items())
        names.append(f"{name} ({options})" if name in twice and options else name)
    for name, count in Counter(names).items():
        if count > 1:
            raise SpecError(f"strategies: {name}: expected each one once, got it {count} times.")
    return names


def _identity(width: int) -> ReadoutSpec:
    """A vector as it is: the mean of one token."""
    return default_registry().resolve("regplug:mean", num_registers=1, hidden_dim=width)


class _Scores:
    """What one entrant scored so far, ``[S, n]``; samples that are still missing are NaN."""

    def __init__(self, seeds: int, count: int) -> None:
        self.scores = torch.full((seeds, count), math.nan, dtype=torch.float64)
        self.controls: dict[str, Tensor] = {}
        self.rates: dict[tuple[int, int], float] = {}

    def add(self, task: Task, scored: Scored, places: Tensor) -> None:
        self.scores[task.seed, places] = scored.scores
        for name, values in scored.controls.items():
            self.controls.setdefault(name, torch.full_like(self.scores, math.nan))[task.seed, places] = values
        self.rates[task.seed, task.fold] = scored.rate


def _train_all(
    entrants: Sequence[Entrant],
    plan: Plan,
    sources: Sources,
    jobs: int | None,
    results: Results,
    progress: Callable[[str], None],
) -> tuple[dict[str, _Scores], dict[str, str]]:
    """The scores of each entrant, and why there are none of the others."""
    found = {one.name: _Scores(plan.seeds, len(sources.targets)) for one in entrants}
    errors: dict[str, str] = {}
    tasks = [Task(one, seed, fold) for seed in range(plan.seeds) for fold in range(plan.folds) for one in entrants]
    keys = {task: key_of(task, plan, sources) for task in tasks}
    waiting = []
    for task in tasks:
        kept = results.read(keys[task])
        if kept is None:
            waiting.append(task)
        else:
            found[task.entrant.name].add(task, *kept)
    start, total = time.monotonic(), len(waiting)
    finished = 0

    def done(task: Task, answer: tuple[Scored, Tensor] | str) -> bool:
        nonlocal finished
        finished += 1
        if isinstance(answer, str):
            errors.setdefault(task.entrant.name, answer)
            return False
        results.write(keys[task], *answer)
        found[task.entrant.name].add(task, *answer)
        left = (time.monotonic() - start) / finished * (total - finished)
        progress(f"{len(tasks) - total + finished} of {len(tasks)} trainings, about {_duration(left)} left")
        return True

    shareable = [task for task in waiting if _is_shareable(task.entrant, plan)]
    jobs = min(usable_cores() if jobs is None else jobs, len(shareable))
    here = waiting
    if jobs > 1:
        run_in_processes(shareable, plan, sources, done, jobs)
        here = [task for task in waiting if task not in set(shareable)]
    run_here(here, plan, sources, done)
    return {name: one for name, one in found.items() if name not in errors}, errors


def _is_shareable(entrant: Entrant, plan: Plan) -> bool:
    """Whether another process can import all that it needs."""
    needed = [plan.head.film, entrant.spec.entry.build if entrant.spec else None]
    return plan.head.registry is None and all(one is None or _is_importable(one) for one in needed)


def _is_importable(reference: Reference) -> bool:
    """Whether a class or function can be found by its name, in a module that is no script."""
    if isinstance(reference, str):
        return not reference.startswith("__main__")
    return "<" not in getattr(reference, "__qualname__", "<") and reference.__module__ != "__main__"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _is_informative(comparison: Comparison) -> bool:
    """Whether a candidate is better than a constant."""
    constant = comparison.names.index(CONSTANT)
    return any(comparison.of(place, constant).low > 0 for place in range(comparison.candidates))


def _rows(
    entrants: Sequence[Entrant],
    strategies: Sequence[Entrant],
    found: Mapping[str, _Scores],
    errors: Mapping[str, str],
    comparison: Comparison | None,
    cost_of: Mapping[str, Any],
    is_share: bool,
) -> list[RankedRow]:
    rows = []
    for one in entrants:
        kind = STRATEGY if one in strategies else REFERENCE
        spec = None if one.spec is None or one.source != REGISTERS else one.spec.as_dict()
        if one.name in errors or comparison is None:
            rows.append(RankedRow(one.name, kind, spec, error=errors.get(one.name)))
            continue
        place = comparison.names.index(one.name)
        best = max(range(comparison.candidates), key=comparison.means.__getitem__)
        scores = found[one.name]
        half = _half_width(scores.scores)
        mean = comparison.means[place]
        rows.append(
            RankedRow(
                one.name,
                kind,
                spec,
                mean,
                max(mean - half, 0.0) if is_share else mean - half,
                min(mean + half, 1.0) if is_share else mean + half,
                None if place == best else comparison.of(place, best),
                {name: values.mean().item() for name, values in scores.controls.items()},
                [scores.rates[place] for place in sorted(scores.rates)] if one.spec is not None else [],
                cost_of.get(one.name),
            )
        )
    order = {STRATEGY: 0, REFERENCE: 1}
    return sorted(rows, key=lambda row: (order[row.kind], row.error is not None, -(row.score or -math.inf)))


def _half_width(scores: Tensor) -> float:
    """Half of the 95 % interval of one mean score, by samples and seeds."""
    seeds, count = scores.shape
    variance = scores.mean(0).var(correction=1) / count
    if seeds > 1:
        variance = variance + scores.mean(1).var(correction=1) / seeds
    return statistics.NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt(variance.item())
