"""A ranking as a table of text, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence

from regplug.commands.bench.report import Spread
from regplug.commands.rank.ranking import CONTROL_NAMES, RankedRow, Ranking


def heads(ranking: Ranking) -> tuple[str, ...]:
    """The columns' names."""
    controls = [CONTROL_NAMES[name] for name in _controls(ranking)]
    times = [f"{name} us" for name in _runtimes(ranking)]
    scores = ("", "strategy", ranking.metric, "95 % alone", "to the best, 95 % together", *controls)
    return (*scores, "cond_dim", "parameters", "FLOPs", *times)


def cells(ranking: Ranking, number: int, row: RankedRow) -> tuple[str, ...]:
    """A row as text, under ``heads``; a dash where a column does not apply."""
    place = str(number) if row.kind == "strategy" else "-"
    if row.score is None or row.low is None or row.high is None:
        return (place, row.name, "failed", *["-"] * (len(heads(ranking)) - 3))
    difference = "-"
    if row.to_best is not None:
        low, middle, high = (
            _signed(ranking, one) for one in (row.to_best.low, row.to_best.difference, row.to_best.high)
        )
        difference = f"{middle} ({low} to {high})"
    cost = row.cost
    times = [_time(cost.microseconds.get(name)) if cost else "-" for name in _runtimes(ranking)]
    return (
        place,
        row.name,
        ranking.shown(row.score),
        f"{ranking.shown(row.low)} to {ranking.shown(row.high)}",
        difference,
        *(ranking.shown(row.controls[name]) if name in row.controls else "-" for name in _controls(ranking)),
        str(row.spec["cond_dim"]) if row.spec else "-",
        str(cost.parameters) if cost else "-",
        str(cost.flops) if cost and cost.flops is not None else "-",
        *times,
    )


def failures(ranking: Ranking) -> list[str]:
    """Why strategies, or runtimes, failed."""
    lines = [f"{row.name}: {row.error}" for row in ranking.rows if row.error]
    for row in ranking.rows:
        if row.cost:
            lines += [
                f"{row.name}, {name}: {one}" for name, one in row.cost.microseconds.items() if isinstance(one, str)
            ]
    return lines


def origin(ranking: Ranking) -> str:
    """Where the samples come from, and how strategies were trained, in one line."""
    facts, plan = ranking.facts, ranking.plan
    known = ("backbone", "model", "data", "samples")
    named = [f"{name} {facts[name]}" for name in known if facts.get(name) is not None]
    if facts.get("weights") is not None:
        named.insert(1, f"weights {facts['weights'][:12]}")  # "random", or the beginning of a digest
    return ", ".join(
        [*named, f"{plan['head']} head", f"{plan['seeds']} seed{'s' * (plan['seeds'] > 1)} of {plan['folds']} folds"]
    )


def _controls(ranking: Ranking) -> Sequence[str]:
    return [name for name in CONTROL_NAMES if any(name in row.controls for row in ranking.rows)]


def _runtimes(ranking: Ranking) -> Sequence[str]:
    return list(dict.fromkeys(name for row in ranking.rows if row.cost for name in row.cost.microseconds))


def _signed(ranking: Ranking, difference: float) -> str:
    if ranking.metric == "accuracy":
        return f"{round(100 * difference, 1) + 0.0:+.1f}"  # no -0.0
    return f"{round(difference, 3) + 0.0:+.3f}"


def _time(time: Spread | str | None) -> str:
    return f"{time.median:.1f}" if isinstance(time, Spread) else "failed" if time else "-"
