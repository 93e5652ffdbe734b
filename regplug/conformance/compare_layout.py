"""Compares the register positions of a layout with those where marks came out. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from regplug.errors import ConformanceError

if TYPE_CHECKING:
    from regplug.conformance.marks import FoundMarks, MarkedParameter
    from regplug.registry.layout import TokenLayout

MAX_SHOWN = 4  # parameters in a message
CLASS_TOKEN = re.compile(r"cls|class|dist_token|summary", re.IGNORECASE)
REGISTER = re.compile(r"reg", re.IGNORECASE)
NUMBER = re.compile(r"\d+")


def check_positions(found: FoundMarks, positions: Sequence[int]) -> str:
    """Refuse a layout whose positions are not those of the registers; returns which parameter is at which position.

    The layout's positions must be those of all rows of one parameter, in order, or of several parameters of one shape:
    a row at another position is a register that is left out. The first rows may be class tokens if the parameter's
    name says so, as ``cls_register_token`` does. A parameter named after a class token holds no registers if another
    is named after registers.

    Args:
        found: Where the marks came out.
        positions: The layout's positions, in order.

    Raises:
        ConformanceError: The registers are elsewhere.
    """
    fault = _fault(found, positions)
    if fault is None:
        holders = _holders(found, positions)
        return ", ".join(f"{one.name} at {format_positions(one.found_positions)}" for one in holders)
    shown = [
        f"{one.name} at {format_positions(one.found_positions)}" for one in found.parameters if one.found_positions
    ]
    seen = (
        "; ".join(shown[:MAX_SHOWN]) or f"none; {len(found.of_the_input)} of {found.num_tokens} tokens depend on inputs"
    )
    raise ConformanceError(f"layout: expected registers at {format_positions(positions)}, got {fault}. Marks: {seen}.")


def check_groups(found: FoundMarks, layout: TokenLayout) -> str:
    """Refuse groups whose tokens are elsewhere, or in two groups; returns which positions each has.

    Patches must be the tokens that depend on the input, all of them, and class tokens rows of parameters.

    Raises:
        ConformanceError: A group has other tokens.
    """
    depend = set(found.of_the_input)
    rows = {position for one in found.parameters for position in one.found_positions}
    taken = dict.fromkeys(layout.positions(found.num_tokens), "registers")
    for group in layout.groups:
        owner, positions = f"layout: group {group.name!r}", group.positions(found.num_tokens)
        if not positions:
            raise ConformanceError(f"{owner}: expected tokens, got none in {found.num_tokens} tokens.")
        if twice := [position for position in positions if position in taken]:
            raise ConformanceError(f"{owner}: expected other tokens than {taken[twice[0]]}, got {twice[0]} in both.")
        if group.name == "patches" and set(positions) != depend:
            raise ConformanceError(
                f"{owner}: expected the tokens that depend on the input, {format_positions(found.of_the_input)}, got "
                f"{format_positions(positions)}."
            )
        if group.name == "cls" and (others := [position for position in positions if position not in rows]):
            raise ConformanceError(f"{owner}: expected rows of a parameter, got {others[0]}, which is none.")
        taken |= dict.fromkeys(positions, group.name)
    return ", ".join(f"{one.name} at {format_positions(one.positions(found.num_tokens))}" for one in layout.groups)


def format_positions(positions: Sequence[int]) -> str:
    """Positions as text: ``1-4`` or ``15, 31, 47``.

    Example:
        >>> format_positions((1, 2, 3)), format_positions((3,)), format_positions((15, 31))
        ('1-3', '3', '15, 31')
    """
    if len(positions) > 1 and {after - before for before, after in pairwise(positions)} == {1}:
        return f"{positions[0]}-{positions[-1]}"
    return ", ".join(map(str, positions))


def _fault(found: FoundMarks, positions: Sequence[int]) -> str | None:
    marked = {position for one in found.parameters for position in one.found_positions}
    for position in positions:
        if position in found.of_the_input:
            return f"a token at {position} that depends on the input"
        if position not in marked:
            hint = f" ({found.unclear[0]} changes no one token most)" if found.unclear else ""
            return f"a token at {position} that is no parameter's row{hint}"
    holders = _holders(found, positions)
    others = [one for one in found.parameters if one not in holders]
    named = any(REGISTER.search(one.name) and not CLASS_TOKEN.search(one.name) for one in (*holders, *others))
    for one in holders:
        if named and CLASS_TOKEN.search(one.name) and not REGISTER.search(one.name):
            return f"the class token {one.name} among them"
    if named and (elsewhere := _named_registers_elsewhere(found, positions)):
        return f"{holders[0].name}, while {elsewhere.name} holds registers by its name"
    if len({one.shape for one in holders}) > 1:
        return f"rows of {holders[0].name} and {holders[1].name}, which have different shapes"
    for other in others:
        if other.shape == holders[0].shape and _name_without_numbers(other) == _name_without_numbers(holders[0]):
            return f"{other.name} left out"
    for one in holders:
        inside = [row for row, position in enumerate(one.positions) if position in positions]
        for row, at in enumerate(one.positions):
            if at not in positions and not (row < inside[0] and CLASS_TOKEN.search(one.name)):
                return f"{one.name}[{row}] left out, which is at {'no one position' if at is None else at}"
    order = [position for one in holders for position in one.found_positions if position in positions]
    return None if order == list(positions) else f"them in another order than in {holders[0].name}"


def _named_registers_elsewhere(found: FoundMarks, positions: Sequence[int]) -> MarkedParameter | None:
    """A parameter named after registers, if no parameter of such a name is at one of the positions."""
    named = [one for one in found.parameters if REGISTER.search(one.name) and one.found_positions]
    return None if any({*positions} & {*one.found_positions} for one in named) else next(iter(named), None)


def _holders(found: FoundMarks, positions: Sequence[int]) -> list[MarkedParameter]:
    """The parameter whose rows are exactly at the positions; if there is none, all that have rows there."""
    exact = [one for one in found.parameters if one.positions == tuple(positions)]
    if exact:
        return exact[:1]
    by_position: dict[int, MarkedParameter] = {}
    for one in found.parameters:
        for position in one.found_positions:
            by_position.setdefault(position, one)
    return list({by_position[position].name: by_position[position] for position in positions}.values())


def _name_without_numbers(one: MarkedParameter) -> str:
    """Its name without numbers; the parameters of a list have it in common."""
    return NUMBER.sub("#", one.name)
