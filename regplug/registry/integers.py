"""Integers as options, sizes and bundles have them: no bool, and below 2^53."""

from __future__ import annotations

from typing import TypeGuard

from regplug.errors import SpecError
from regplug.registry.untrusted_values import repr_of

MAX_INTEGER = (1 << 53) - 1  # larger ones are not the same in every language that reads JSON


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value is an integer, and not a bool, which Python counts as one."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_positive_int(value: object) -> TypeGuard[int]:
    """Whether a value is an integer of at least 1."""
    return is_int(value) and value >= 1


def check_positive_int(label: str, value: object) -> int:
    """The value.

    Args:
        label: What the value is for; the message begins with it.
        value: Anything.

    Raises:
        SpecError: It is not an integer of at least 1.
    """
    if not is_positive_int(value):
        raise SpecError(f"{label}: expected a positive integer, got {repr_of(value)}.")
    return value
