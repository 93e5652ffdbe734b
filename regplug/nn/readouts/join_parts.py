"""The parts of a join, and its width; without torch, so that a width is cheap to compute."""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regplug.errors import SpecError
from regplug.nn.readouts.sizes import check_sizes
from regplug.registry.default import default_registry
from regplug.registry.entries import ReadoutEntry
from regplug.registry.layout import GROUP_NAME
from regplug.registry.spec import specify_unmeasured

OWNER = "TokenJoin"
JOIN = "regplug:join"
MAX_PARTS = 64  # each is built and measured, and a stranger's bundle may name many


@dataclass(frozen=True)
class JoinPart:
    """One part of a join: a strategy, and the tokens that it reads, ``tokens[:, start:stop]``.

    Args:
        name: The part's name in the state dict.
        strategy: The strategy's name, as an installed plugin offers it; kept as ``distribution:name``.
        start: Position of the first token; a negative one counts from the end.
        stop: Position after the last token; None for the end of the sequence.
        options: The strategy's options.

    Raises:
        SpecError: The name is another one.
        NameLookupError: The strategy is not installed.
    """

    name: str
    strategy: str
    start: int = 0
    stop: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not GROUP_NAME.fullmatch(self.name) or keyword.iskeyword(self.name):
            raise SpecError(
                f"name: expected lower-case letters, digits and underscores, no word of Python's, got {self.name!r}"
            )
        # in full: another plugin may offer a strategy of this name later
        object.__setattr__(self, "strategy", default_registry().readout_entry(self.strategy).full_name)


@dataclass(frozen=True)
class PlacedPart:
    """A part in a sequence of known length.

    Args:
        part: The part.
        entry: Its strategy.
        first: Position of its first token, from 0 up.
        count: How many tokens it reads.
    """

    part: JoinPart
    entry: ReadoutEntry
    first: int
    count: int


def place_parts(num_tokens: int, parts: Sequence[JoinPart]) -> list[PlacedPart]:
    """Look the strategies up, and find each part's tokens in a sequence of ``num_tokens``.

    Raises:
        SpecError: There are no parts or more than 64, two have one name, one has no tokens, or one is a join itself.
        NameLookupError: A strategy is not installed.
    """
    if not isinstance(parts, Sequence) or isinstance(parts, str) or not parts:
        raise SpecError(f"{OWNER}: parts: expected at least one JoinPart, got {parts!r}.")
    if len(parts) > MAX_PARTS:
        raise SpecError(f"{OWNER}: parts: expected at most {MAX_PARTS}, got {len(parts)}.")
    found: list[PlacedPart] = []
    for part in parts:
        if not isinstance(part, JoinPart):
            raise SpecError(f"{OWNER}: parts: expected each to be a JoinPart, got {part!r}.")
        owner = f"{OWNER}: part {part.name!r}"
        if any(part.name == other.part.name for other in found):
            raise SpecError(f"{owner}: expected each name once, got it twice.")
        entry = default_registry().readout_entry(part.strategy)
        if entry.full_name == JOIN:
            raise SpecError(f"{owner}: strategy: expected one that is not a join itself, got {part.strategy!r}.")
        stop = num_tokens if part.stop is None else part.stop
        positions = range(num_tokens)[part.start : stop]
        if not positions or not (-num_tokens <= part.start and -num_tokens <= stop <= num_tokens):
            raise SpecError(
                f"{owner}: expected tokens inside a sequence of {num_tokens}, which a join reads as a whole, got start="
                f"{part.start}, stop={part.stop}."
            )
        found.append(PlacedPart(part, entry, positions[0], len(positions)))
    return found


def join_width(num_registers: int, hidden_dim: int, parts: tuple[JoinPart, ...]) -> int:
    """The sum of the parts' widths."""
    check_sizes(OWNER, num_registers=num_registers, hidden_dim=hidden_dim)
    placed = place_parts(num_registers, parts)
    return sum(specify_unmeasured(one.entry, one.count, hidden_dim, one.part.options).cond_dim for one in placed)
