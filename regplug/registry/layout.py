"""Where the register tokens, and other groups of tokens, are in a sequence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from regplug.errors import ShapeError, SpecError
from regplug.registry.integers import check_positive_int, is_int, is_positive_int
from regplug.registry.token_group import GROUP_NAME as GROUP_NAME
from regplug.registry.token_group import REGISTERS as REGISTERS
from regplug.registry.token_group import TOKENS as TOKENS
from regplug.registry.token_group import TokenGroup as TokenGroup


@dataclass(frozen=True)
class TokenLayout:
    """Where R register tokens of width D are in a sequence ``[B, T, D]``.

    Positions are given in one of two ways:

    * ``start``: the registers are adjacent. ``start >= 0`` counts from the front (``[CLS, REG x 4, patches]`` is
      ``start=1``), ``start < 0`` from the end (``[patches, REG x 4]`` is ``start=-4``). T may vary.
    * ``indices``: each position by itself, which fixes T (``num_tokens``). ``interleaved`` makes them by
      Mamba-Reg's rule.

    Without a fixed number of registers (None), they are all tokens from ``start`` to the end of the sequence.

    Two layouts are equal if their registers are in the same places, whatever their ``groups`` are.

    Args:
        num_registers: Registers per sample, R >= 1; None for all tokens from ``start >= 0`` on.
        hidden_dim: Width of a token, D >= 1.
        start: Position of the first register, or None.
        indices: Increasing positions of the registers, or None.
        num_tokens: Length of the sequence, T; required with ``indices``, optional with ``start``.
        normalized: Whether the backbone's final norm is already applied to the tokens; None if not stated.
        groups: The other kinds of tokens that a readout may read, as class tokens and patches.

    Raises:
        SpecError: A size is not positive, both or neither of ``start`` and ``indices`` are given, the
            positions do not fit R or T, or two groups have one name.

    Example:
        >>> TokenLayout(num_registers=4, hidden_dim=384, start=-4).positions(200)
        (196, 197, 198, 199)
    """

    num_registers: int | None
    hidden_dim: int
    start: int | None = None
    indices: tuple[int, ...] | None = None
    num_tokens: int | None = None
    normalized: bool | None = None
    groups: tuple[TokenGroup, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        self._check_groups(self.groups)
        for word in ("num_registers", "hidden_dim", "num_tokens"):
            if word == "hidden_dim" or getattr(self, word) is not None:
                check_positive_int(f"TokenLayout: {word}", getattr(self, word))
        if not (self.normalized is None or isinstance(self.normalized, bool)):
            raise SpecError(f"TokenLayout: normalized: expected True, False or None, got {self.normalized!r}.")
        if (self.start is None) == (self.indices is None):
            raise SpecError(
                f"TokenLayout: expected either start or indices, got start={self.start!r}, indices={self.indices!r}."
            )
        if self.indices is not None:
            self._check_indices(self.indices)
        elif not is_int(self.start):
            raise SpecError(f"TokenLayout: start: expected an integer, got {self.start!r}.")
        elif self.num_registers is None:
            if self.start < 0:
                raise SpecError(
                    f"TokenLayout: start: expected 0 or more with num_registers=None, got {self.start}; for the last "
                    f"{-self.start} tokens, use num_registers={-self.start}."
                )
        elif -self.num_registers < self.start < 0:
            raise SpecError(
                f"TokenLayout: start: expected at most {-self.num_registers} for {self.num_registers} registers "
                f"counted from the end, got {self.start}."
            )
        if self.num_tokens is not None and self.num_tokens < self.min_tokens:
            raise SpecError(f"TokenLayout: num_tokens: expected at least {self.min_tokens}, got {self.num_tokens}.")

    def _check_indices(self, indices: Iterable[int]) -> None:
        if isinstance(indices, str) or not isinstance(indices, Iterable):
            raise SpecError(f"TokenLayout: indices: expected integers, got {indices!r}.")
        if self.num_registers is None:
            raise SpecError("TokenLayout: num_registers: expected an integer with indices, got None.")
        indices = tuple(indices)
        object.__setattr__(self, "indices", indices)  # JSON gives a list
        if not all(is_int(index) and index >= 0 for index in indices):
            raise SpecError(f"TokenLayout: indices: expected integers from 0 up, got {list(indices)}.")
        if any(after <= before for before, after in pairwise(indices)):
            raise SpecError(f"TokenLayout: indices: expected increasing positions, got {list(indices)}.")
        if len(indices) != self.num_registers:
            raise SpecError(
                f"TokenLayout: indices: expected {self.num_registers} positions (num_registers), got {len(indices)}."
            )
        if self.num_tokens is None:
            raise SpecError("TokenLayout: num_tokens: expected an integer with indices, got None.")

    def _check_groups(self, groups: Iterable[TokenGroup]) -> None:
        groups = tuple(groups) if isinstance(groups, Iterable) else (groups,)
        if not all(isinstance(one, TokenGroup) for one in groups):
            raise SpecError(f"TokenLayout: groups: expected each to be a TokenGroup, got {groups!r}.")
        object.__setattr__(self, "groups", groups)
        names = [one.name for one in groups]
        if twice := [name for name in names if names.count(name) > 1]:
            raise SpecError(f"TokenLayout: groups: expected each name once, got {twice[0]!r} twice.")

    @classmethod
    def interleaved(
        cls, *, num_registers: int, hidden_dim: int, num_patches: int, normalized: bool | None = None
    ) -> TokenLayout:
        """Registers spread evenly between the patches, as Mamba-Reg does.

        Positions ``arange(L, L * (R + 1) + R, L + 1)`` with ``L = num_patches // (R + 1)``, in a sequence of
        ``num_patches + R`` tokens. Source: Mamba-Reg (Wang et al., 2024), models_mamba.py.

        Args:
            num_registers: Registers per sample, R >= 1.
            hidden_dim: Width of a token, D >= 1.
            num_patches: Patch tokens per sample, N >= 1.
            normalized: Whether the final norm is already applied; None if not stated.

        Raises:
            SpecError: A size is not a positive integer.
        """
        if not (is_positive_int(num_registers) and is_positive_int(num_patches)):
            raise SpecError(
                "TokenLayout.interleaved: expected positive integers num_registers and num_patches, "
                f"got {num_registers!r} and {num_patches!r}."
            )
        gap = num_patches // (num_registers + 1)
        return cls(
            num_registers=num_registers,
            hidden_dim=hidden_dim,
            indices=tuple(range(gap, gap * (num_registers + 1) + num_registers, gap + 1)),
            num_tokens=num_patches + num_registers,
            normalized=normalized,
        )

    @property
    def min_tokens(self) -> int:
        """The shortest sequence, in tokens, that holds the registers."""
        if self.indices is not None:
            return self.indices[-1] + 1
        if self.start is None:
            raise SpecError("TokenLayout: expected either start or indices, got neither.")
        return self.start + (self.num_registers or 1) if self.start >= 0 else -self.start

    def positions(self, num_tokens: int) -> tuple[int, ...]:
        """The registers' absolute positions in a sequence of ``num_tokens`` tokens.

        Raises:
            ShapeError: The sequence is too short, or does not have the length that this layout is for.
        """
        if self.num_tokens is not None and num_tokens != self.num_tokens:
            raise ShapeError(f"TokenLayout: expected {self.num_tokens} tokens, got {num_tokens}.")
        if num_tokens < self.min_tokens:
            raise ShapeError(f"TokenLayout: expected at least {self.min_tokens} tokens, got {num_tokens}.")
        if self.indices is not None:
            return self.indices
        first = self.start if self.start is not None and self.start >= 0 else num_tokens + (self.start or 0)
        return tuple(range(first, num_tokens if self.num_registers is None else first + self.num_registers))

    def for_group(self, name: str, num_tokens: int | None = None) -> TokenLayout:
        """The layout by which a readout reads another group: that group's tokens are its registers.

        Args:
            name: ``"registers"``, a group's name, or ``"tokens"``, all of them.
            num_tokens: Length of the sequence, T. Without it, a group from some position to the end of the sequence
                has no fixed number of tokens: ``num_registers`` is None.

        Raises:
            SpecError: There is no such group, or it ends before the end of the sequence and needs T.
            ShapeError: A sequence of T tokens does not hold the registers, or has another length than the layout's, or
                has none of the group's tokens.

        Example:
            >>> patches = TokenGroup("patches", start=5)
            >>> layout = TokenLayout(num_registers=4, hidden_dim=384, start=1, groups=(patches,))
            >>> layout.for_group("patches", 201).num_registers
            196
        """
        if num_tokens is not None:
            self.positions(check_positive_int("TokenLayout: num_tokens", num_tokens))
        if name == REGISTERS:
            return replace(self, groups=())
        length = self.num_tokens if num_tokens is None else num_tokens
        if name == TOKENS and length is not None:
            return replace(self, num_registers=length, start=0, indices=None, num_tokens=length, groups=())
        group = next((one for one in self.groups if one.name == name), None)
        if group is None and name != TOKENS:
            known = ", ".join([REGISTERS, *(one.name for one in self.groups), TOKENS])
            raise SpecError(f"TokenLayout: group: expected one of {known}, got {name!r}.")
        if group is not None and group.num_tokens is not None:
            return replace(self, num_registers=group.num_tokens, start=group.start, indices=None, groups=())
        if length is None:
            if group is not None and group.stop is not None:
                raise SpecError(
                    f"TokenLayout: group {name!r}: expected num_tokens, as it ends before the end of the sequence and "
                    f"its length is free, got None; pass the number of tokens, as in for_group({name!r}, 201)."
                )
            return self._from(0 if group is None else group.start)
        positions = group.positions(length) if group is not None else ()
        if not positions:
            raise ShapeError(f"TokenLayout: group {name!r}: expected tokens of it, got none in {length} tokens.")
        count, first = len(positions), positions[0]
        return replace(self, num_registers=count, start=first, indices=None, num_tokens=length, groups=())

    def _from(self, start: int) -> TokenLayout:
        """All tokens from a position on."""
        return replace(self, num_registers=None, start=start, indices=None, groups=())

    def reads(self, other: TokenLayout) -> bool:
        """Whether ``other`` reads this layout's registers, or one of its other groups."""
        if other.num_registers is None:
            starts = [0, *(one.start for one in self.groups if one.stop is None and one.start >= 0)]
            return other in (self, *(replace(self._from(start), num_tokens=other.num_tokens) for start in starts))
        length = other.num_tokens or self.num_tokens
        if length is not None and length < self.min_tokens:
            return False
        names = [one.name for one in self.groups if one.num_tokens or (length and one.positions(length))]
        names += [TOKENS] if length else []
        return any(self.for_group(name, length) == other for name in (REGISTERS, *names))

    def as_dict(self) -> dict[str, Any]:
        """Where the registers are, as plain JSON values, without ``groups``; ``from_dict`` reads them back."""
        values = {key: value for key, value in vars(self).items() if key != "groups"}
        values["indices"] = None if self.indices is None else list(self.indices)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenLayout:
        """Read what ``as_dict`` gave.

        Raises:
            SpecError: A key is unknown or a value does not fit.
        """
        fields = [name for name in cls.__dataclass_fields__ if name != "groups"]
        unknown = set(values) - set(fields)
        missing = {"num_registers", "hidden_dim"} - set(values)
        if unknown or missing:
            raise SpecError(
                f"TokenLayout: expected the fields of a layout, got {sorted(map(str, values))}; "
                f"known: {', '.join(fields)}."
            )
        return cls(**values)
