"""A join: a strategy for each of several groups of tokens, and vectors, chosen by name. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regplug.errors import SpecError
from regplug.nn.readouts.join_parts import JOIN
from regplug.registry.default import default_registry
from regplug.registry.integers import check_positive_int, is_int
from regplug.registry.layout import REGISTERS, TOKENS, TokenLayout
from regplug.registry.registry import Registry
from regplug.registry.spec import ReadoutSpec, specify

Chosen = str | int | tuple[Any, ...]


@dataclass(frozen=True)
class Join:
    """What ``join`` returns; ``attach`` takes it in place of a strategy.

    Args:
        parts: For each part the group's or the vector's name, the vector's width (None for a group), the strategy's
            name (None for a vector that is taken as it is), and the strategy's options, in order.
    """

    parts: tuple[tuple[str, int | None, str | None, Mapping[str, Any]], ...]

    def swap(self, **parts: Chosen) -> Join:
        """The same join with other strategies, or widths, for some of its parts; every width follows.

        Args:
            **parts: As for ``join``.

        Raises:
            SpecError: It has no such part, or one is wrong.

        Example:
            >>> join(cls="mean", patches="mean").swap(patches="gated-abmil").parts[1][2]
            'gated-abmil'
        """
        known = [part[0] for part in self.parts]
        if unknown := sorted(set(parts) - set(known)):
            raise SpecError(f"join: swap: expected some of {', '.join(known)}, got {unknown[0]!r}.")
        return Join(tuple(_part(part[0], parts[part[0]]) if part[0] in parts else part for part in self.parts))

    def resolve(
        self, layout: TokenLayout, num_tokens: int | None = None, registry: Registry | None = None
    ) -> ReadoutSpec:
        """The spec of a readout that reads all tokens of a backbone, and the vectors.

        Args:
            layout: The backbone's layout, with its groups.
            num_tokens: Length of the sequence, T; None for any length, which every strategy must then take for a group
                of free length.
            registry: Where strategies are looked up; the installed plugins if None.

        Raises:
            SpecError: The layout has no such group, or a strategy refuses its sizes or options.
            NameLookupError: A strategy is not installed.

        Example:
            >>> from regplug import TokenGroup, TokenLayout
            >>> patches = TokenGroup("patches", start=5)
            >>> layout = TokenLayout(num_registers=4, hidden_dim=384, start=1, groups=(patches,))
            >>> join(registers="pool", patches="mean", state=7).resolve(layout).cond_dim
            775
        """
        if not isinstance(layout, TokenLayout):
            raise SpecError(f"join: layout: expected a TokenLayout, got {layout!r}.")
        if num_tokens is not None:
            check_positive_int("join: num_tokens", num_tokens)
        registry = registry or default_registry()
        length = num_tokens or layout.num_tokens
        options = self.options(layout, length, registry)
        return specify(registry.readout_entry(JOIN), length, layout.hidden_dim, options)

    def options(self, layout: TokenLayout, num_tokens: int | None, registry: Registry) -> dict[str, Any]:
        """The options of the strategy ``join`` for a backbone's tokens.

        Args:
            layout: The backbone's layout, with its groups.
            num_tokens: Length of the sequence, T; None for any.
            registry: Where strategies are looked up.

        Raises:
            SpecError: The layout has no such group, or its registers are not next to each other.
            NameLookupError: A strategy is not installed.
        """
        parts = []
        groups = [one.name for one in layout.groups]
        for name, width, strategy, options in self.parts:
            if width and name in groups:
                raise SpecError(
                    f"join: part {name!r}: expected a strategy, as it is a group of the layout, got {width}."
                )
            full_name = strategy and registry.readout_entry(strategy).full_name
            chosen = {"name": name, "strategy": full_name, "options": dict(options)}
            parts.append(chosen | ({"width": width} if width else _place(name, layout, num_tokens)))
        return {"parts": parts}


def _place(group: str, layout: TokenLayout, num_tokens: int | None) -> dict[str, int | None]:
    """Where a group's tokens are: ``start`` and ``stop``."""
    if num_tokens is None and layout.indices is None:
        found = next((one for one in layout.groups if one.name == group), None)
        if found is not None:
            return {"start": found.start, "stop": found.stop}
        start, count = layout.start or 0, layout.num_registers
        if group == TOKENS or count is None:
            return {"start": 0 if group == TOKENS else start, "stop": None}
        if group == REGISTERS:
            return {"start": start, "stop": start + count if start + count else None}
    positions = layout.for_group(group, num_tokens).positions(num_tokens or layout.num_tokens or 0)
    if len(positions) != positions[-1] - positions[0] + 1:
        raise SpecError(f"join: part {group!r}: expected tokens next to each other, got {positions}.")
    return {"start": positions[0], "stop": positions[-1] + 1}


def join(**parts: Chosen) -> Join:
    """Several readouts, each of one group of a backbone's tokens, and vectors, as one conditioning vector.

    ``cond_dim`` is the sum of their widths. ``attach(model, join(...))`` finds the groups' tokens.

    Args:
        **parts: For each group, as ``registers``, ``cls`` or ``patches``, the strategy's name, or a tuple of it and its
            options. For a vector, as a robot's state, its width, or a tuple of its width, the name of a strategy that
            reads it as one token, and that one's options. Their order is that of the conditioning vector.

    Raises:
        SpecError: There are no parts, or one is none of these.

    Example:
        >>> join(cls="mean", registers=("compress-concat", {"compressed_dim": 96}), state=7).parts[2]
        ('state', 7, None, {})
    """
    if not parts:
        raise SpecError(f"join: expected at least one part, as {REGISTERS}='pool', got none.")
    return Join(tuple(_part(name, given) for name, given in parts.items()))


def _part(name: str, given: Chosen) -> tuple[str, int | None, str | None, Mapping[str, Any]]:
    """A part as the user gave it: ``"mean"``, ``("mean", {})``, ``7``, ``(1, "mean")`` or ``(1, "mean", {})``."""
    width: int | None = None
    words: tuple[Any, ...] = given if isinstance(given, tuple) else (given,)
    if words and is_int(words[0]):
        width, *rest = words
        check_positive_int(f"join: part {name!r}: width", width)
        words = tuple(rest) or (None,)
    strategy, options = words if len(words) == 2 else (*words, {}) if len(words) == 1 else ("", None)
    is_named = isinstance(strategy, str) or (strategy is None and width is not None)
    if not (is_named and isinstance(options, Mapping)):
        raise SpecError(
            f"join: part {name!r}: expected a strategy's name, (name, options), or a vector's width, (width, name), "
            f"(width, name, options), got {given!r}."
        )
    return name, width, strategy, dict(options)
