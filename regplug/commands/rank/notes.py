"""What a reader of a ranking should know: of the samples, the trainings and the intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regplug.commands.rank import probe
from regplug.commands.rank.entrants import Plan
from regplug.commands.rank.ranking import RankedRow
from regplug.commands.rank.statistics import Comparison
from regplug.errors import clip

ENOUGH_SEEDS = 3
EDGE_SHARE = 0.5  # of the trainings: if more of them chose the largest rate, a larger one might be right
LEFT_OUT = {
    "empty_folders": "folders without images, which are no classes",
    "unlabelled_images": "images without a label, which are left out",
}


def notes_on(
    plan: Plan, rows: Sequence[RankedRow], comparison: Comparison | None, facts: Mapping[str, Any]
) -> list[str]:
    """One line each."""
    notes = []
    if facts.get("weights") == "random":
        notes.append("the backbone has random weights: its registers are random features (--weights, -M).")
    if copies := facts.get("duplicates"):
        notes.append(f"{copies} samples are copies of others: they make scores too good (--groups).")
    for fact, what in LEFT_OUT.items():
        if (left := facts.get(fact)) and left["count"]:
            notes.append(f"{what}: {left['count']:,} ({_first(left)}).")
    if plan.seeds < ENOUGH_SEEDS:
        notes.append(f"fewer than {ENOUGH_SEEDS} seeds: the intervals know little of the variation between trainings.")
    if comparison is not None and comparison.widened:
        names = ", ".join(comparison.names[place] for place in comparison.widened)
        notes.append(f"few samples for the width of {names}: the intervals are wider, by what folds share.")
    at_edge = [
        row.name for row in rows if sum(rate == probe.RATES[-1] for rate in row.rates) > EDGE_SHARE * len(row.rates)
    ]
    if at_edge:
        names = ", ".join(at_edge)
        notes.append(f"the largest learning rate was chosen mostly, a larger one might do better: {names}.")
    if comparison is not None and plan.head.film is None:
        notes.append("a linear head sees the vector alone: with another sample's registers it scores as chance.")
    return notes


def _first(left: Mapping[str, Any]) -> str:
    names = [clip(name, 40) for name in left["first"]]
    more = left["count"] - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more else "")
