"""What the doctor says of one thing: ``ok``, a ``warning``, or a ``problem``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from regplug import errors

OK, WARNING, PROBLEM = LEVELS = ("ok", "warning", "problem")
SHOWN = 5  # of many alike, how many are named
LONGEST = 400  # characters of a message; what plugins raise and print has no bound


@dataclass(frozen=True)
class Finding:
    """One line for people.

    Args:
        level: ``warning`` or ``problem``.
        distribution: The plugin that it is about; None for what belongs to none alone.
        message: What is wrong and what to do.
    """

    level: str
    distribution: str | None
    message: str


def worst(levels: Iterable[str]) -> str:
    """The worst of some levels; ``ok`` of none."""
    return max(levels, key=LEVELS.index, default=OK)


def clip(text: str, longest: int = LONGEST) -> str:
    """One printable line, no longer than a message may be."""
    return errors.clip(text, longest)


def shorten(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")
