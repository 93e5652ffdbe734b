"""Checks a pickle before it is loaded: deeply nested tuples may take forever to hash."""

from __future__ import annotations

import pickletools
from typing import BinaryIO

MAX_NESTED = 16  # torch's own are nested 4 deep
SAVED = {"PUT", "BINPUT", "LONG_BINPUT"}
FETCHED = {"GET", "BINGET", "LONG_BINGET"}


class DeepPickleError(Exception):
    """A pickle with tuples nested too deep, or not a pickle."""


def check_nesting(stream: BinaryIO) -> None:
    """Read one pickle of a stream to its end, and refuse tuples nested deeper than 16.

    A tuple may hold another one twice, and so on: hashing it as a key takes 2^depth steps, which never ends for a file
    of a few hundred bytes.

    Raises:
        DeepPickleError: Tuples are nested deeper, or it is not a pickle.
    """
    stack: list[int | None] = []  # the depth of each value; None for a mark
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
                if deepest > MAX_NESTED:
                    raise DeepPickleError(f"tuples nested deeper than {MAX_NESTED}")
                stack += [deepest] * len(opcode.stack_after)
    except (ValueError, LookupError, TypeError) as error:
        raise DeepPickleError("a damaged pickle") from error


def _top(stack: list[int | None]) -> int:
    return stack[-1] or 0


def _taken(stack: list[int | None], opcode: pickletools.OpcodeInfo) -> list[int]:
    """The depths of what an opcode takes from the stack: a number of values, or all values after a mark."""
    wanted = opcode.stack_before
    taken: list[int] = []
    if pickletools.markobject in wanted:
        while (value := stack.pop()) is not None:
            taken.append(value)
        wanted = wanted[: wanted.index(pickletools.markobject)]
    taken += [stack.pop() or 0 for _ in wanted]
    return taken
