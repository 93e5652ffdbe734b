"""Groups of adjacent tokens, such as class tokens and patches."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass

from regplug.errors import SpecError
from regplug.registry.integers import is_int

REGISTERS, TOKENS = "registers", "tokens"  # the groups that every layout has; all tokens are one
GROUP_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class TokenGroup:
    """Adjacent tokens of one kind: those at ``range(T)[start:stop]``, so a negative number counts from the end.

    Args:
        name: ``"cls"``, ``"patches"`` or another word of lower-case letters, digits and underscores.
        start: Position of the first token.
        stop: Position after the last token; None for the end of the sequence.

    Raises:
        SpecError: The name is another one, a position is no integer, or the group would always be empty.

    Example:
        >>> TokenGroup("patches", start=5).positions(9)
        (5, 6, 7, 8)
    """

    name: str
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        owner = "TokenGroup: name: expected"
        if not (isinstance(self.name, str) and GROUP_NAME.fullmatch(self.name)):
            raise SpecError(f"{owner} lower-case letters, digits and underscores, got {self.name!r}.")
        if self.name in (REGISTERS, TOKENS):
            raise SpecError(f"{owner} another word than {self.name!r}, a group that every layout has.")
        for word, value in (("start", self.start), ("stop", self.stop)):
            if not (is_int(value) or (word == "stop" and value is None)):
                raise SpecError(f"TokenGroup {self.name!r}: {word}: expected an integer, got {value!r}.")
        if keyword.iskeyword(self.name):
            raise SpecError(f"{owner} a word that is none of Python's own, got {self.name!r}.")
        backwards = self.stop is not None and self.start < 0 <= self.stop
        if backwards or (self.num_tokens is not None and self.num_tokens < 1):
            raise SpecError(
                f"TokenGroup {self.name!r}: stop: expected a position after start={self.start}, got {self.stop}."
            )

    @property
    def num_tokens(self) -> int | None:
        """How many tokens there are; None if that depends on the length of the sequence."""
        if self.stop is None:
            return None if self.start >= 0 else -self.start
        return self.stop - self.start if (self.start < 0) == (self.stop < 0) else None

    def positions(self, num_tokens: int) -> tuple[int, ...]:
        """The absolute positions in a sequence of ``num_tokens`` tokens, those that there are, as of a slice."""
        return tuple(range(num_tokens)[self.start : self.stop])
