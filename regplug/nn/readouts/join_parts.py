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
from regplug.registry.layout import GROUP_NAME, REGISTERS, TOKENS
from regplug.registry.options import bind
from regplug.registry.readout_inputs import MASK
from regplug.registry.spec import ReadoutSpec, specify_unmeasured

OWNER = "TokenJoin"
JOIN = "regplug:join"
MAX_PARTS = 64  # each is built and measured, and a stranger's bundle may name many
INPUTS = (MASK, TOKENS, REGISTERS, "images")  # what a vector cannot be called: other inputs are


@dataclass(frozen=True)
class JoinPart:
    """One part of a join: tokens that a strategy reads, ``tokens[:, start:stop]``, or a vector ``[B, width]``.

    Args:
        name: The part's name in the state dict; a vector's name among the inputs, too.
        strategy: The strategy's name, as an installed plugin offers it; kept as ``distribution:name``. None for a
            vector that is taken as it is. A strategy reads a vector as one token, ``[B, 1, width]``.
        start: Position of the first token; a negative one counts from the end.
        stop: Position after the last token; None for the end of the sequence.
        options: The strategy's options.
        width: The vector's width; None for tokens.

    Raises:
        SpecError: The name is another one, or there is neither a strategy nor a width.
        NameLookupError: The strategy is not installed.
    """

    name: str
    strategy: str | None = None
    start: int = 0
    stop: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    width: int | None = None

    def __repr__(self) -> str:
        words = [repr(self.name), *([repr(self.strategy)] if self.strategy else [])]
        for word, value, default in (("start", self.start, 0), ("stop", self.stop, None), ("width", self.width, None)):
            words += [f"{word}={value}"] if value != default else []
        return f"JoinPart({', '.join(words + ([f'options={dict(self.options)}'] if self.options else []))})"

    def __post_init__(self) -> None:
        if not GROUP_NAME.fullmatch(self.name) or keyword.iskeyword(self.name):
            raise SpecError(
                f"name: expected lower-case letters, digits and underscores, no word of Python's, got {self.name!r}"
            )
        if self.width is not None:
            check_sizes(f"part {self.name!r}", width=self.width)
            if self.name in INPUTS:
                raise SpecError(
                    f"name: expected a vector with another name than {', '.join(INPUTS)}, got {self.name!r}"
                )
            if (self.start, self.stop) != (0, None):
                raise SpecError(f"part {self.name!r}: expected tokens or a width, got both")
        if self.strategy is not None:
            # in full: another plugin may offer a strategy of this name later
            object.__setattr__(self, "strategy", default_registry().readout_entry(self.strategy).full_name)
        elif self.width is None:
            raise SpecError(f"part {self.name!r}: expected a strategy, or the width of a vector, got neither")
        elif self.options:
            raise SpecError(f"part {self.name!r}: expected no options without a strategy, got {dict(self.options)!r}")


@dataclass(frozen=True)
class PlacedPart:
    """A part in a sequence.

    Args:
        part: The part.
        entry: Its strategy; None for a vector that is taken as it is.
        first: Position of its first token; a negative one counts from the end.
        count: How many tokens it reads; None if that depends on the length of the sequence.
    """

    part: JoinPart
    entry: ReadoutEntry | None
    first: int
    count: int | None

    def spec(self, hidden_dim: int) -> ReadoutSpec | None:
        """Its strategy, with sizes; None for a vector that is taken as it is.

        Raises:
            SpecError: The strategy refuses the sizes or the options.
        """
        if self.entry is None:
            return None
        count, width = (1, self.part.width) if self.part.width else (self.count, hidden_dim)
        return specify_unmeasured(self.entry, count, width, self.part.options)


def place_parts(num_tokens: int | None, parts: Sequence[JoinPart]) -> list[PlacedPart]:
    """Look the strategies up, and find each part's tokens in a sequence of ``num_tokens``; None for any length.

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
        entry = None if part.strategy is None else default_registry().readout_entry(part.strategy)
        if entry and entry.full_name == JOIN:
            raise SpecError(f"{owner}: strategy: expected one that is not a join itself, got {part.strategy!r}.")
        first, count = (0, None) if part.width else _place(owner, num_tokens, part.start, part.stop)
        found.append(PlacedPart(part, entry, first, count))
    if all(one.part.width for one in found):
        raise SpecError(f"{OWNER}: parts: expected at least one that reads tokens, got vectors alone.")
    return found


def _place(owner: str, num_tokens: int | None, start: int, stop: int | None) -> tuple[int, int | None]:
    """The first token, and the count if it is known."""
    end = num_tokens if stop is None else stop
    if num_tokens is not None and end is not None:
        positions = range(num_tokens)[start:end]
        if positions and -num_tokens <= start and -num_tokens <= end <= num_tokens:
            return positions[0], len(positions)
        raise SpecError(
            f"{owner}: expected tokens inside a sequence of {num_tokens}, which a join reads as a whole, got start="
            f"{start}, stop={stop}."
        )
    if end is None:
        return start, -start if start < 0 else None
    if start >= 0 > end:
        return start, None
    if end <= start or start < 0 <= end:  # the latter has tokens in short sequences alone
        raise SpecError(f"{owner}: expected start before stop in every sequence, got start={start}, stop={stop}.")
    return start, end - start


@dataclass(frozen=True)
class PartWidth:
    """A part of a join, and how wide it is in the conditioning vector.

    Args:
        part: The part.
        spec: What it is read by; None for a vector that is taken as it is.
    """

    part: JoinPart
    spec: ReadoutSpec | None

    @property
    def width(self) -> int:
        """Its width in the conditioning vector."""
        return self.spec.cond_dim if self.spec else int(self.part.width or 0)

    @property
    def reads(self) -> str:
        """What it reads, in words: ``tokens 1:5``, or ``vector of 7``."""
        if self.part.width is not None:
            return f"vector of {self.part.width}"
        return f"tokens {self.part.start}:{'' if self.part.stop is None else self.part.stop}"

    @property
    def strategy(self) -> str:
        """The name of its strategy; ``-`` for a vector that is taken as it is."""
        return self.spec.strategy if self.spec else "-"

    @property
    def takes_mask(self) -> bool:
        """Whether it takes a mask for its tokens; imports the readout's module."""
        return self.spec is not None and self.part.width is None and self.spec.takes_mask


def widths_of(num_registers: int | None, hidden_dim: int, parts: Sequence[JoinPart]) -> list[PartWidth]:
    """The parts with their widths, in order; ``cond_dim`` is their sum.

    Raises:
        SpecError: As ``place_parts``, or a strategy refuses its sizes or options.
        NameLookupError: A strategy is not installed.
    """
    return [PartWidth(one.part, one.spec(hidden_dim)) for one in place_parts(num_registers, parts)]


def parts_of(spec: ReadoutSpec) -> list[PartWidth] | None:
    """The parts of a spec with their widths; None if its strategy is not ``join``.

    Args:
        spec: What ``resolve`` or ``attach`` made.

    Raises:
        NameLookupError: A part's strategy is not installed.
    """
    if spec.strategy != JOIN:
        return None
    sizes = {"num_registers": spec.num_registers, "hidden_dim": spec.hidden_dim}
    arguments = bind("strategy 'join'", join_width, sizes, spec.options)  # spec.arguments would import torch
    return widths_of(spec.num_registers, spec.hidden_dim, arguments["parts"])


def join_width(num_registers: int | None, hidden_dim: int, parts: tuple[JoinPart, ...]) -> int:
    """The sum of the parts' widths."""
    fixed = {} if num_registers is None else {"num_registers": num_registers}
    check_sizes(OWNER, **fixed, hidden_dim=hidden_dim)
    return sum(one.width for one in widths_of(num_registers, hidden_dim, parts))
