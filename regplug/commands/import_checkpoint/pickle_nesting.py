"""Looks at a pickle before it is read: how deep its tuples are nested, which decides how long a key takes to hash."""

from __future__ import annotations

import pickletools
from typing import BinaryIO

MOST_NESTED = 16  # torch's own go 4 deep
SAVED = {"PUT", "BINPUT", "LONG_BINPUT"}
FETCHED = {"GET", "BINGET", "LONG_BINGET"}


class DeepPickleError(Exception):
    """A pickle whose tuples are nested too deep, or that is no pickle."""


def check_nesting(stream: BinaryIO) -> None:
    """Refuse one pickle of a stream, and read on to its end, if its tuples are nested deeper than 16.

    A tuple may hold another twice, and that one another: as a key it is hashed in 2^depth steps, which a file of some
    hundred bytes makes endless.

    Raises:
        DeepPickleError: They are, or it is no pickle.
    """
    stack: list[int | None] = []  # how deep each value is; None for a mark
    memo: dict[object, int] = {}
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in SAVED:
                memo[argument] = _top(stack)
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = _top(stack)
            elif opcode.name in FETCHED:
                stack.append(memo[argument])
            elif opcode.name == "MARK":
                stack.append(None)
            else:
                deepest = max(_taken(stack, opcode), default=0) + opcode.name.startswith("TUPLE")
                if deepest > MOST_NESTED:
                    raise DeepPickleError(f"tuples nested deeper than {MOST_NESTED}")
                stack += [deepest] * len(opcode.stack_after)
    except (ValueError, LookupError, TypeError) as error:
        raise DeepPickleError("a damaged pickle") from error


def _top(stack: list[int | None]) -> int:
    return stack[-1] or 0


def _taken(stack: list[int | None], opcode: pickletools.OpcodeInfo) -> list[int]:
    """What an opcode takes from the stack: all after a mark where it wants one, and so many before."""
    wanted = opcode.stack_before
    taken: list[int] = []
    if pickletools.markobject in wanted:
        while (value := stack.pop()) is not None:
            taken.append(value)
        wanted = wanted[: wanted.index(pickletools.markobject)]
    taken += [stack.pop() or 0 for _ in wanted]
    return taken
