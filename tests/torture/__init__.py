"""The battery behind docs/SECURITY.md: what a loader must stand, tried by the thousand, each zero beside its count.

Every module here but this one and ``__main__`` is a part with one function::

    run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]

``work`` is an empty folder, ``share`` how much of the full battery to run (1 for ``make torture``, a hundredth or so in
``make test``), ``seed`` decides whatever is drawn, ``progress`` takes a word on what is under way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One row of the table: how many were tried, and how often what must not happen did.

    Args:
        what: What was tried, in the plural: "damaged bundles".
        tried: How many.
        bad: What must not happen, and how often it did: {"process deaths": 0}.
        allowed: How often each may, as the requirement says; 0 but for surviving mutants.
        seed: What the draws were made from; None where nothing is drawn.
        note: Further figures, in a few words.
    """

    what: str
    tried: int
    bad: Mapping[str, int]
    allowed: int = 0
    seed: int | None = None
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether something was tried at all, and nothing happened that must not."""
        return self.tried > 0 and all(count <= self.allowed for count in self.bad.values())
