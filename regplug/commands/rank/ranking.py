"""The result of a ranking: rows, differences, what they say in a sentence, and all of it as JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from regplug.commands.bench.report import Spread
from regplug.commands.rank.costs import Cost
from regplug.commands.rank.statistics import Comparison, Difference

STRATEGY, REFERENCE = "strategy", "reference"
CONTROL_NAMES = {"swapped": "another's", "mean": "mean", "zeros": "zeros"}


@dataclass(frozen=True)
class RankedRow:
    """A strategy or reference, as the table shows it.

    Args:
        name: Its name.
        kind: ``strategy`` or ``reference``.
        spec: The strategy, sizes, options and width; None for a constant.
        score: The mean score out of fold; None if it could not be trained.
        low: The lower end of the interval of its score alone.
        high: The upper end.
        to_best: The difference to the best strategy, with its simultaneous interval; None for the best itself.
        controls: The mean score with other registers in place of the sample's own, after the same training.
        rates: The learning rate that was chosen in each fold.
        cost: Parameters, FLOPs and times; None for a constant.
        error: Why it could not be trained.
    """

    name: str
    kind: str
    spec: Mapping[str, Any] | None
    score: float | None = None
    low: float | None = None
    high: float | None = None
    to_best: Difference | None = None
    controls: Mapping[str, float] = field(default_factory=dict)
    rates: Sequence[float] = ()
    cost: Cost | None = None
    error: str | None = None


@dataclass(frozen=True)
class Ranking:
    """What ``rank`` found.

    Args:
        facts: Where the samples come from.
        metric: ``accuracy`` or ``R2``.
        plan: How strategies were trained.
        rows: Strategies from the best score to the worst, those that failed last, then references.
        comparison: All pairs, in the order of ``compared``; None if fewer than one strategy was trained.
        informative: Whether the strategies' vectors predict better than a constant does.
        margin: A difference that does not matter to the user, if given.
        notes: What the reader should know.
    """

    facts: Mapping[str, Any]
    metric: str
    plan: Mapping[str, Any]
    rows: Sequence[RankedRow]
    comparison: Comparison | None
    informative: bool
    margin: float | None
    notes: Sequence[str]

    @property
    def winner(self) -> str | None:
        """The strategy that is better than every other one, if the data say so."""
        found = self.comparison
        return None if found is None or found.winner is None or not self.informative else found.names[found.winner]

    @property
    def may_be_best(self) -> tuple[str, ...]:
        """The strategies that no other one is better than."""
        found = self.comparison
        return () if found is None else tuple(found.names[place] for place in found.may_be_best)

    @property
    def ok(self) -> bool:
        """Whether a strategy could be trained."""
        return self.comparison is not None

    @property
    def sentence(self) -> str:
        """The result in words."""
        found = self.comparison
        if found is None:
            return "No strategy could be trained."
        if not self.informative:
            return "No information found: no strategy predicts better than a constant."
        if found.candidates == 1:
            return f"{found.names[0]} predicts better than a constant; there is no other strategy to compare it with."
        return found.sentence(self.in_units, self.margin)

    def in_units(self, difference: float) -> str:
        """A difference of scores as a reader says it: points for accuracy."""
        return f"{100 * difference:.2g} points" if self.metric == "accuracy" else f"{difference:.2g}"

    def shown(self, score: float) -> str:
        """A score as the table shows it."""
        return f"{100 * score:.1f} %" if self.metric == "accuracy" else f"{score:.3f}"

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; numbers that do not exist are null."""
        found = self.comparison
        values: dict[str, Any] = {
            "ok": self.ok,
            "sentence": self.sentence,
            "winner": self.winner,
            "may_be_best": list(self.may_be_best),
            "informative": self.informative,
            "margin": self.margin,
            "metric": self.metric,
            "samples": dict(self.facts),
            "plan": dict(self.plan),
            "rows": [_row(row) for row in self.rows],
            "pairs": []
            if found is None
            else [
                {**asdict(one), "first": found.names[one.first], "second": found.names[one.second]}
                for one in found.pairs
            ],
            "critical": None if found is None else found.critical,
            "notes": list(self.notes),
        }
        cleaned: dict[str, Any] = _without_nan(values)
        return cleaned


def _row(row: RankedRow) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in ("name", "kind", "spec", "score", "low", "high", "error")}
    values["controls"], values["learning_rates"] = dict(row.controls), list(row.rates)
    best = row.to_best
    values["to_best"] = best and {"difference": best.difference, "low": best.low, "high": best.high}
    values["cost"] = row.cost and {
        "parameters": row.cost.parameters,
        "flops": row.cost.flops,
        "microseconds": {
            name: asdict(one) if isinstance(one, Spread) else {"failed": one}
            for name, one in row.cost.microseconds.items()
        },
    }
    return values


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_nan(one) for name, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, (list, tuple)) else value
