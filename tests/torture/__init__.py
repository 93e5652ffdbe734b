"""The battery behind docs/SECURITY.md: what loaders and writers must survive, tried thousands of times and counted.

Each part is a module that ``__main__`` names, with one function::

    run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]

``work`` is an empty folder. ``share`` says how much of the full battery to run: 1 for ``make torture``, less in tests.
``seed`` seeds all that is drawn at random. ``progress`` takes a few words on what is running.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One row of the table: how many were tried, and how often something happened that must not.

    Args:
        what: What was tried, in the plural: "damaged bundles".
        tried: How many.
        bad: What must not happen, and how often it did: {"process deaths": 0}.
        allowed: How often each may happen; 0 except for surviving mutants.
        seed: The seed of what was drawn; None if nothing was.
        note: More figures, in a few words.
    """

    what: str
    tried: int
    bad: Mapping[str, int]
    allowed: int = 0
    seed: int | None = None
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether something was tried, and nothing happened more often than allowed."""
        return self.tried > 0 and all(count <= self.allowed for count in self.bad.values())
