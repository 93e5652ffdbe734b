"""What the doctor reports: diagnostics, and their levels ``ok``, ``warning`` and ``problem``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from regplug import errors

OK, WARNING, PROBLEM = LEVELS = ("ok", "warning", "problem")
MAX_SHOWN = 5  # names in a list of many
MAX_MESSAGE = 400  # characters; what plugins raise and print has no bound


@dataclass(frozen=True)
class Diagnostic:
    """One line of the report.

    Args:
        level: ``warning`` or ``problem``.
        distribution: The plugin that it is about; None if it is about no plugin or about several.
        message: What is wrong and what to do.
    """

    level: str
    distribution: str | None
    message: str


def worst(levels: Iterable[str]) -> str:
    """The worst of some levels; ``ok`` of none."""
    return max(levels, key=LEVELS.index, default=OK)


def clip(text: str, longest: int = MAX_MESSAGE) -> str:
    """The text on one printable line, cut to the length of a message."""
    return errors.clip(text, longest)
