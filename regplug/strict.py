"""Reads JSON into frozen dataclasses, strictly: every key is there, no other, and each value as its hint says."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import accumulate
from operator import sub
from typing import Annotated, Any, TypeVar

T = TypeVar("T")
Rule = Callable[[str, Any], Any]
LARGEST = 1 << 53
DEEPEST = 64
MOST_MARKS = 1 << 17  # brackets and commas
SHOWN = 60
PLAIN_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
OPTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
TEXT = re.compile(rb'"(?:[^"\\]+|\\.?)*"?', re.DOTALL)  # whose brackets do not count
DEPTHS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # one level deeper, and back, as signed bytes
NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))


class WrongValueError(Exception):
    """``KEY: expected WHAT, got VALUE``; the caller knows the file."""


class DuplicateKeyError(WrongValueError):
    """A key stands twice in one object."""


class Number:
    """A JSON number as written: 4 and 4.0 are not the same to a strict reader."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def parse_json(data: bytes) -> Any:
    """The JSON value in ``data``, its numbers as written.

    The checks come in one order, in C++ too, so that a text with several faults has one message.

    Raises:
        DuplicateKeyError: A key is there twice.
        WrongValueError: It has more than 131,072 brackets and commas, is nested deeper than 64, or is no JSON in UTF-8.
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
    """An object in which a key is there twice, as it was written."""


def _refuse(text: str) -> Any:
    raise ValueError(text)  # NaN and Infinity, which are no JSON


def _number(text: str) -> Number:
    return Number(text) if abs(float(text)) < float("inf") else _refuse(text)  # nor what no float64 holds


def _check_brackets(data: bytes) -> None:
    """Refuse what takes long to walk over, and deep nesting before the parser meets it, which has a limit of its own.

    A bracket that closes nothing counts for nothing: from each depth the lowest before it, where that is below 0, is
    taken off. No loop of Python's: a text may be a megabyte of brackets.

    Args:
        data: The text without its strings, whose brackets and commas do not count.
    """
    marks = sum(map(data.count, (b",", b"[", b"]", b"{", b"}")))
    if marks > MOST_MARKS:
        raise WrongValueError(f"expected at most {MOST_MARKS} brackets and commas, got {marks}")
    steps = memoryview(data.translate(DEPTHS, NO_BRACKETS)).cast("b")
    depths: list[int] = list(accumulate(steps, initial=0))
    if max(map(sub, depths, accumulate(depths, min))) > DEEPEST:
        raise WrongValueError(f"nested deeper than {DEEPEST}")


def _check_texts(value: Any) -> None:
    """Raise ValueError for half a surrogate pair, which is no text; Python's parser lets it through."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_texts(item)
    elif isinstance(value, dict):
        for item in value.items():
            _check_texts(item)


def _refuse_first_duplicate(value: Any) -> None:
    """Raise for the first key in the text that is there twice in its object; C++ meets it first, too."""
    if isinstance(value, dict):
        for item in value.values():
            _refuse_first_duplicate(item)
    elif isinstance(value, _Pairs):
        seen: set[str] = set()
        for key, item in value:
            if key in seen:
                raise DuplicateKeyError(f"key {quoted(key)} stands twice")
            seen.add(key)
            _refuse_first_duplicate(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_first_duplicate(item)


def read_as(hint: type[T], value: Any, where: str = "") -> T:
    """``value`` as the type that ``hint`` names.

    Known hints: dataclasses; ``X | None``; ``tuple[X, ...]`` for lists; ``Mapping[K, X]``, where K's rule says which
    keys there may be, and X is Any in a free object; str; bool; float, from 0 up; ``Annotated[X, rule]``, whose rule
    reads the value itself.

    Raises:
        WrongValueError: It is something else; the message names the key.
    """
    return _read(hint, where, value)  # type: ignore[no-any-return]


def _read(hint: Any, where: str, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return arguments[1](where, value)
    if type(None) in arguments:
        return None if value is None else _read(arguments[0], where, value)
    if is_dataclass(hint):
        return _read_fields(hint, where, value)
    if origin is tuple:
        items = _typed(where, value, list, "a list")
        return tuple(_read(arguments[0], _join(where, str(i)), item) for i, item in enumerate(items))
    if origin is Mapping:
        items = sorted(_typed(where, value, dict, "an object").items())
        return {_read(arguments[0], where, key): _read(arguments[1], _join(where, key), item) for key, item in items}
    if hint is float:
        return _amount(where, value)
    if hint is bool:
        return _typed(where, value, bool, "true or false")
    if hint is str:
        return _typed(where, value, str, "a string")
    return plain(value)


def _read_fields(hint: Any, where: str, value: Any) -> Any:
    given = _typed(where, value, dict, "an object")
    hints = typing.get_type_hints(hint, include_extras=True)
    known = [field.name for field in fields(hint)]
    for key in known:
        if key not in given:
            raise WrongValueError(f"{_join(where, key)}: expected a value, got nothing")
    for key in sorted(given):
        if key not in known:
            raise wrong(_join(where, named(key)), "no such key", given[key])
    return hint(**{key: _read(hints[key], _join(where, key), given[key]) for key in known})


# ---- rules for Annotated


def integer(at_least: int | None = None) -> Rule:
    """Plain digits below 2^53, not below ``at_least``."""
    wanted = "an integer" if at_least is None else f"an integer >= {at_least}"
    lowest = -LARGEST + 1 if at_least is None else at_least

    def read(where: str, value: Any) -> int:
        number = plain_digits(value)
        if number is None or not lowest <= number < LARGEST:
            raise wrong(where, wanted, value)
        return number

    return read


def one_of(*known: str) -> Rule:
    """One of a few words."""

    def read(where: str, value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            raise wrong(where, f"one of [{', '.join(known)}]", value)
        return value

    return read


def matching(pattern: re.Pattern[str], wanted: str) -> Rule:
    """A string that matches as a whole."""

    def read(where: str, value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise wrong(where, wanted, value)
        return value

    return read


# ---- messages


def wrong(where: str, wanted: str, value: Any) -> WrongValueError:
    """The exception for a value that is not what was wanted."""
    return WrongValueError(f"{where}{': ' if where else ''}expected {wanted}, got {shown(value)}")


def shown(value: Any) -> str:
    """A value inside a message: compact JSON in ASCII on one line, at most 60 characters of it."""
    text = ""
    for piece in _compact(value):
        text += piece
        if len(text) > SHOWN:  # the rest of a megabyte is not written out to be cut off
            break
    return _cut(text)


def named(key: str) -> str:
    """A key inside a message: as it is where it is a plain name, else as JSON in ASCII."""
    return key if PLAIN_NAME.fullmatch(key) else shown(key)


def quoted(name: str) -> str:
    """A name inside a message, in ASCII on one line whatever it holds."""
    return f"'{_cut(json.dumps(name)[1:-1])}'"


def printable(text: str) -> str:
    """A text of somebody else's on one line of ASCII: a terminal obeys some of the other letters."""
    return "".join(letter if " " <= letter <= "~" else letter.encode("unicode_escape").decode() for letter in text)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _compact(value: Any) -> Iterator[str]:
    """JSON with sorted keys; a number that is no integer in the twelve digits that printf gives in any language."""
    if isinstance(value, Mapping):
        yield "{"
        for index, key in enumerate(sorted(value)):
            yield f"{',' if index else ''}{json.dumps(key)}:"
            yield from _compact(value[key])
        yield "}"
    elif isinstance(value, (list, tuple)):
        yield "["
        for index, item in enumerate(value):
            yield "," if index else ""
            yield from _compact(item)
        yield "]"
    else:
        yield _compact_scalar(plain(value))


def _compact_scalar(value: Any) -> str:
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        value = float(value)
    if not isinstance(value, float):
        return json.dumps(value)
    text = f"{value:.12g}"
    return text if set(text) & {".", "e"} else f"{text}.0"


def plain(value: Any) -> Any:
    """The value with its numbers as Python's."""
    if isinstance(value, Number):
        return int(value.text) if value.text.lstrip("-").isdigit() else float(value.text)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def plain_digits(value: Any) -> int | None:
    """The integer that a JSON number spells in digits alone; None for anything else, -0 and 1.0 included."""
    text = value.text if isinstance(value, Number) else ""
    return int(text) if PLAIN_INTEGER.fullmatch(text) else None


def _amount(where: str, value: Any) -> float:
    if not isinstance(value, Number) or float(value.text) < 0:
        raise wrong(where, "a number >= 0", value)
    return float(value.text)


def _typed(where: str, value: Any, wanted: type, word: str) -> Any:
    if not isinstance(value, wanted):
        raise wrong(where, word, value)
    return value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
