"""What strategies are compared on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Samples:
    """What strategies are compared on: n samples' tokens, and what is to be predicted.

    Args:
        registers: ``[n, R, D]`` float32, memory-mapped from the cache; writing to it changes no file.
        targets: Classification: ``[n]`` int64, an index of ``classes``; regression: ``[n, K]`` float64.
        classes: The names of the classes in order; None for regression.
        references: ``"cls"`` and ``"patches"``, each ``[n, D]``: the means of the groups that the layout has.
        groups: ``[n]`` int64: samples of one group must stay in one fold; None if any may be apart.
        facts: JSON values for a report; ``read_samples`` lists them.
    """

    registers: Tensor
    targets: Tensor
    classes: tuple[str, ...] | None = None
    references: Mapping[str, Tensor] = field(default_factory=dict)
    groups: Tensor | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.registers)
