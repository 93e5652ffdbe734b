"""Whether the positions that a layout names are those where marks came out. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from regplug.errors import ConformanceError

if TYPE_CHECKING:
    from regplug.conformance.marks import Findings, Marked

SHOWN = 4  # parameters in a message
CLASS_TOKEN = re.compile(r"cls|class|dist_token|summary", re.IGNORECASE)
REGISTER = re.compile(r"reg", re.IGNORECASE)
NUMBER = re.compile(r"\d+")


def judge(found: Findings, positions: Sequence[int]) -> str:
    """Where the registers are, for people, if they are where the layout says.

    The layout's positions must be those of one parameter's rows, in order, or of several parameters of one shape, and
    all of them: a row elsewhere is a register that is left out. Rows in front may be class tokens if the parameter's
    name says so, as in ``cls_register_token``. A parameter that is named a class token holds no registers where
    another is named after registers.

    Args:
        found: What marks tell.
        positions: The layout's positions, in order.

    Raises:
        ConformanceError: They are elsewhere.
    """
    fault = _fault(found, positions)
    if fault is None:
        parts = _parts(found, positions)
        return ", ".join(f"{one.name} at {listed(_known(one))}" for one in parts)
    shown = [f"{one.name} at {listed(_known(one))}" for one in found.parameters if _known(one)]
    seen = "; ".join(shown[:SHOWN]) or f"none; {len(found.of_the_input)} of {found.num_tokens} tokens depend on inputs"
    raise ConformanceError(f"layout: expected registers at {listed(positions)}, got {fault}. Marks: {seen}.")


def listed(positions: Sequence[int]) -> str:
    """Positions as people write them: ``1-4`` or ``15, 31, 47``.

    Example:
        >>> listed((1, 2, 3)), listed((3,)), listed((15, 31))
        ('1-3', '3', '15, 31')
    """
    if len(positions) > 1 and {after - before for before, after in pairwise(positions)} == {1}:
        return f"{positions[0]}-{positions[-1]}"
    return ", ".join(map(str, positions))


def _fault(found: Findings, positions: Sequence[int]) -> str | None:
    landed = {place for one in found.parameters for place in _known(one)}
    for place in positions:
        if place in found.of_the_input:
            return f"a token at {place} that depends on the input"
        if place not in landed:
            hint = f" ({found.unclear[0]} changes no one token most)" if found.unclear else ""
            return f"a token at {place} that is no parameter's row{hint}"
    parts = _parts(found, positions)
    others = [one for one in found.parameters if one not in parts]
    named = any(REGISTER.search(one.name) and not CLASS_TOKEN.search(one.name) for one in (*parts, *others))
    for one in parts:
        if named and CLASS_TOKEN.search(one.name) and not REGISTER.search(one.name):
            return f"the class token {one.name} among them"
    if named and (elsewhere := _named_registers_elsewhere(found, positions)):
        return f"{parts[0].name}, while {elsewhere.name} holds registers by its name"
    if len({one.shape for one in parts}) > 1:
        return f"rows of {parts[0].name} and {parts[1].name}, which are unlike"
    for other in others:
        if other.shape == parts[0].shape and _kind(other) == _kind(parts[0]):
            return f"{other.name} left out"
    for one in parts:
        inside = [row for row, place in enumerate(one.positions) if place in positions]
        for row, at in enumerate(one.positions):
            if at not in positions and not (row < inside[0] and CLASS_TOKEN.search(one.name)):
                return f"{one.name}[{row}] left out, which is at {'no one position' if at is None else at}"
    order = [place for one in parts for place in _known(one) if place in positions]
    return None if order == list(positions) else f"them in another order than in {parts[0].name}"


def _named_registers_elsewhere(found: Findings, positions: Sequence[int]) -> Marked | None:
    """A parameter that is named after registers, where none that is so named is at a position: prompts are others."""
    named = [one for one in found.parameters if REGISTER.search(one.name) and _known(one)]
    return None if any(place in positions for one in named for place in _known(one)) else next(iter(named), None)


def _parts(found: Findings, positions: Sequence[int]) -> list[Marked]:
    """The parameter whose rows are at the positions, and nowhere else; without one, all that have rows there."""
    exact = [one for one in found.parameters if one.positions == tuple(positions)]
    if exact:
        return exact[:1]
    owners: dict[int, Marked] = {}
    for one in found.parameters:
        for place in _known(one):
            owners.setdefault(place, one)
    return list({owners[place].name: owners[place] for place in positions}.values())


def _known(one: Marked) -> list[int]:
    return [place for place in one.positions if place is not None]


def _kind(one: Marked) -> str:
    """Its name without numbers, which several parameters of a list share."""
    return NUMBER.sub("#", one.name)
