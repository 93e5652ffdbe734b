"""A join: a strategy for each of several groups of tokens, chosen by name. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regplug.errors import SpecError
from regplug.registry.layout import REGISTERS, TokenLayout
from regplug.registry.registry import Registry


@dataclass(frozen=True)
class Join:
    """What ``join`` returns; ``attach`` takes it in place of a strategy.

    Args:
        parts: For each part the group's name, the strategy's name, and the strategy's options, in order.
    """

    parts: tuple[tuple[str, str, Mapping[str, Any]], ...]

    def options(self, layout: TokenLayout, num_tokens: int, registry: Registry) -> dict[str, Any]:
        """The options of the strategy ``join`` for a backbone's tokens.

        Args:
            layout: The backbone's layout, with its groups.
            num_tokens: Length of the sequence, T.
            registry: Where strategies are looked up.

        Raises:
            SpecError: The layout has no such group, or its registers are not next to each other.
            NameLookupError: A strategy is not installed.
        """
        parts = []
        for group, strategy, options in self.parts:
            positions = layout.for_group(group, num_tokens).positions(num_tokens)
            if len(positions) != positions[-1] - positions[0] + 1:
                raise SpecError(f"join: part {group!r}: expected tokens next to each other, got {positions}.")
            place = {"start": positions[0], "stop": positions[-1] + 1}
            full_name = registry.readout_entry(strategy).full_name
            parts.append({"name": group, "strategy": full_name, **place, "options": dict(options)})
        return {"parts": parts}


def join(**parts: str | tuple[str, Mapping[str, Any]]) -> Join:
    """Several readouts, each of one group of a backbone's tokens, concatenated into one conditioning vector.

    ``cond_dim`` is the sum of their widths. ``attach(model, join(...))`` finds the groups' tokens.

    Args:
        **parts: For each group, as ``registers``, ``cls`` or ``patches``, the strategy's name, or a tuple of it and its
            options. Their order is that of the vectors.

    Raises:
        SpecError: There are no parts, or one is neither a name nor a name with options.

    Example:
        >>> join(cls="mean", registers=("compress-concat", {"compressed_dim": 96}), patches="mean").parts[1]
        ('registers', 'compress-concat', {'compressed_dim': 96})
    """
    if not parts:
        raise SpecError(f"join: expected at least one part, as {REGISTERS}='pool', got none.")
    found = []
    for group, given in parts.items():
        strategy, options = given if isinstance(given, tuple) and len(given) == 2 else (given, {})
        if not (isinstance(strategy, str) and isinstance(options, Mapping)):
            raise SpecError(f"join: part {group!r}: expected a strategy's name, or (name, options), got {given!r}.")
        found.append((group, strategy, dict(options)))
    return Join(tuple(found))
