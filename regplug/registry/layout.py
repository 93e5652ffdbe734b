"""Where the register tokens are in a token sequence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from regplug.errors import ShapeError, SpecError
from regplug.registry.integers import check_positive_int, is_int, is_positive_int


@dataclass(frozen=True)
class TokenLayout:
    """Where R register tokens of width D are in a sequence ``[B, T, D]``.

    Positions are given in one of two ways:

    * ``start``: the registers are adjacent. ``start >= 0`` counts from the front (``[CLS, REG x 4, patches]`` is
      ``start=1``), ``start < 0`` from the end (``[patches, REG x 4]`` is ``start=-4``). T may vary.
    * ``indices``: each position by itself, which fixes T (``num_tokens``). ``interleaved`` makes them by
      Mamba-Reg's rule.

    Args:
        num_registers: Registers per sample, R >= 1.
        hidden_dim: Width of a token, D >= 1.
        start: Position of the first register, or None.
        indices: Increasing positions of the registers, or None.
        num_tokens: Length of the sequence, T; required with ``indices``, optional with ``start``.
        normalized: Whether the backbone's final norm is already applied to the tokens; None if not stated.

    Raises:
        SpecError: A size is not positive, both or neither of ``start`` and ``indices`` are given, or the
            positions do not fit R or T.

    Example:
        >>> TokenLayout(num_registers=4, hidden_dim=384, start=-4).positions(200)
        (196, 197, 198, 199)
    """

    num_registers: int
    hidden_dim: int
    start: int | None = None
    indices: tuple[int, ...] | None = None
    num_tokens: int | None = None
    normalized: bool | None = None

    def __post_init__(self) -> None:
        for word in ("num_registers", "hidden_dim", "num_tokens"):
            if not (word == "num_tokens" and self.num_tokens is None):
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
        elif self.start is not None and -self.num_registers < self.start < 0:
            raise SpecError(
                f"TokenLayout: start: expected at most {-self.num_registers} for {self.num_registers} registers "
                f"counted from the end, got {self.start}."
            )
        if self.num_tokens is not None and self.num_tokens < self.min_tokens:
            raise SpecError(f"TokenLayout: num_tokens: expected at least {self.min_tokens}, got {self.num_tokens}.")

    def _check_indices(self, indices: Iterable[int]) -> None:
        if isinstance(indices, str) or not isinstance(indices, Iterable):
            raise SpecError(f"TokenLayout: indices: expected integers, got {indices!r}.")
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
        return self.start + self.num_registers if self.start >= 0 else -self.start

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
        return tuple(range(first, first + self.num_registers))

    def as_dict(self) -> dict[str, Any]:
        """The layout as plain JSON values; ``from_dict`` reads them back."""
        values = asdict(self)
        values["indices"] = None if self.indices is None else list(self.indices)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenLayout:
        """Read what ``as_dict`` gave.

        Raises:
            SpecError: A key is unknown or a value does not fit.
        """
        unknown = set(values) - set(cls.__dataclass_fields__)
        missing = {"num_registers", "hidden_dim"} - set(values)
        if unknown or missing:
            raise SpecError(
                f"TokenLayout: expected the fields of a layout, got {sorted(map(str, values))}; "
                f"known: {', '.join(cls.__dataclass_fields__)}."
            )
        return cls(**values)
