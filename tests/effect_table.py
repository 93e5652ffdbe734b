"""Prints which seeded defects `regplug.effect` finds: `python tests/effect_table.py` (about 20 s)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from support.seeded_defects import AT_START, DEFECTS
from support.seeded_networks import ARCHITECTURES

import regplug

FOUND, MISSED, NOT_APPLICABLE = "found", "missed", "-"


def measured(kind: str, name: str) -> regplug.EffectReport:
    """The report on one architecture with one defect."""
    architecture = ARCHITECTURES[name]
    network = architecture.start() if kind in AT_START else architecture.trained()
    DEFECTS[kind][name](network)
    return regplug.effect(network, architecture.inputs(), layout=architecture.layout)


def unharmed(name: str, state: str, is_drawn: bool) -> regplug.EffectReport:
    """The report on one architecture without a defect."""
    architecture = ARCHITECTURES[name]
    network = architecture.start() if state == "start" else architecture.trained()
    inputs = None if is_drawn else architecture.inputs()
    return regplug.effect(network, inputs, layout=architecture.layout)


def verdict(kind: str, name: str) -> str:
    """Whether a defect is found, as a defect and under its own kind."""
    if name not in DEFECTS[kind]:
        return NOT_APPLICABLE
    return FOUND if any(one.kind == kind for one in measured(kind, name).defects) else MISSED


def table() -> Iterator[str]:
    """The lines of the table, in Markdown."""
    yield f"| kind | {' | '.join(ARCHITECTURES)} |"
    yield f"|---|{'---|' * len(ARCHITECTURES)}"
    for kind in DEFECTS:
        yield f"| `{kind}` | {' | '.join(verdict(kind, name) for name in ARCHITECTURES)} |"
    for state in ("start", "trained"):
        for is_drawn in (False, True):
            counts = [
                str(len(unharmed(name, state, is_drawn).defects)) if one.is_tried or not is_drawn else NOT_APPLICABLE
                for name, one in ARCHITECTURES.items()
            ]
            inputs = "drawn" if is_drawn else "given"
            yield f"| unharmed, {state}, {inputs} inputs: findings | {' | '.join(counts)} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in table():
        print(line, flush=True)
