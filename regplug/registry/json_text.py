"""Parses JSON strictly: no duplicate keys, no deep nesting, no NaN; numbers are kept as written."""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate
from operator import sub
from typing import Any

from regplug.errors import truncate

MAX_DEPTH = 64
MAX_MARKS = 1 << 17  # brackets and commas
MAX_SHOWN = 60  # characters of a value or a key in a message
PLAIN_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
OPTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
TEXT = re.compile(rb'"(?:[^"\\]+|\\.?)*"?', re.DOTALL)  # its brackets do not count
DEPTHS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # one level deeper, and back, as signed bytes
NO_BRACKETS = bytes(range(256)).translate(None, b"[{]}")


class WrongValueError(Exception):
    """``KEY: expected WHAT, got VALUE``; the caller knows the file."""


class DuplicateKeyError(WrongValueError):
    """A JSON object has a duplicate key."""


class Number:
    """A JSON number as written: 4 and 4.0 are different to a strict reader."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def parse_json(data: bytes) -> Any:
    """The JSON value in ``data``, its numbers as written.

    The order of the checks is the same in C++, so that a text with several faults gives one message.

    Raises:
        DuplicateKeyError: An object has a duplicate key.
        WrongValueError: It has more than 131,072 brackets and commas or more than 64 levels, or is not JSON in UTF-8.
    """
    if data.startswith(b"\xef\xbb\xbf"):
        raise WrongValueError("not JSON: begins with a byte order mark")
    _check_brackets(TEXT.sub(b"", data))
    duplicates: list[_Pairs] = []

    def read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Pairs:
        values = dict(pairs)
        if len(values) == len(pairs):
            return values
        duplicates.append(_Pairs(pairs))
        return duplicates[-1]

    try:
        text = data.decode()
        value = json.loads(
            text, object_pairs_hook=read_object, parse_int=_number, parse_float=_number, parse_constant=_refuse
        )
        if "\\u" in text:
            _check_texts(value)
    except ValueError:
        raise WrongValueError("not JSON") from None
    if duplicates:
        _refuse_first_duplicate(value)
    return value


class _Pairs(list[Any]):
    """An object that has a key twice, as written."""


def _refuse(text: str) -> Any:
    raise ValueError(text)  # NaN and Infinity are not JSON


def _number(text: str) -> Number:
    return Number(text) if math.isfinite(float(text)) else _refuse(text)  # nor is a number beyond float64


def _check_brackets(data: bytes) -> None:
    """Refuse too many values, and deep nesting before the parser, which has another limit, sees it.

    A bracket that closes nothing does not count: from each depth the lowest depth before it, if below 0, is
    subtracted. There is no Python loop, because a text may be a megabyte of brackets.

    Args:
        data: The text without its strings: brackets and commas in them do not count.
    """
    marks = sum(map(data.count, (b",", b"[", b"]", b"{", b"}")))
    if marks > MAX_MARKS:
        raise WrongValueError(f"expected at most {MAX_MARKS} brackets and commas, got {marks}")
    steps = memoryview(data.translate(DEPTHS, NO_BRACKETS)).cast("b")
    depths: list[int] = list(accumulate(steps, initial=0))
    if max(map(sub, depths, accumulate(depths, min))) > MAX_DEPTH:
        raise WrongValueError(f"nested deeper than {MAX_DEPTH}")


def _check_texts(value: Any) -> None:
    """Raise ValueError for half a surrogate pair, which is not text; Python's parser accepts it."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_texts(item)
    elif isinstance(value, dict):
        for item in value.items():
            _check_texts(item)


def _refuse_first_duplicate(value: Any) -> None:
    """Raise for the first duplicate key in the text, as C++ does."""
    if isinstance(value, dict):
        for item in value.values():
            _refuse_first_duplicate(item)
    elif isinstance(value, _Pairs):
        seen: set[str] = set()
        for key, item in value:
            if key in seen:
                raise DuplicateKeyError(f"duplicate key {quote(key)}")
            seen.add(key)
            _refuse_first_duplicate(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_first_duplicate(item)


def quote(name: str) -> str:
    """A name inside a message: always in ASCII, on one line."""
    return f"'{truncate(json.dumps(name)[1:-1], MAX_SHOWN)}'"


def plain(value: Any) -> Any:
    """The value with Python's numbers."""
    if isinstance(value, Number):
        return int(value.text) if value.text.lstrip("-").isdigit() else float(value.text)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def plain_digits(value: Any) -> int | None:
    """The integer of a JSON number that is digits alone; None for anything else, such as -0 and 1.0."""
    text = value.text if isinstance(value, Number) else ""
    return int(text) if PLAIN_INTEGER.fullmatch(text) else None
