"""Reads JSON into frozen dataclasses, strictly: exactly the known keys, each value of the type its hint names."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, TypeVar

from regplug.errors import truncate
from regplug.registry.integers import MAX_INTEGER
from regplug.registry.json_text import MAX_SHOWN, Number, WrongValueError, plain, plain_digits

T = TypeVar("T")
Rule = Callable[[str, Any], Any]
PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


def read_as(hint: type[T], value: Any, newer: bool = True) -> T:
    """Convert a parsed JSON value to the type ``hint``.

    A field with a default is a key of a newer format: unless ``newer``, the JSON must not have it.

    Known hints: dataclasses; ``X | None``; ``tuple[X, ...]`` for lists; ``Mapping[K, X]``, where K's rule checks the
    keys and X may be Any; str; bool; float, which must be 0 or more; ``Annotated[X, rule]``, where the rule converts
    the value.

    Raises:
        WrongValueError: It has another type; the message names the key.
    """
    return _read(hint, "", value, newer)  # type: ignore[no-any-return]


def _read(hint: Any, where: str, value: Any, newer: bool) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return arguments[1](where, value)
    if type(None) in arguments:
        return None if value is None else _read(arguments[0], where, value, newer)
    if is_dataclass(hint):
        return _read_fields(hint, where, value, newer)
    if origin is tuple:
        items = _typed(where, value, list, "a list")
        return tuple(_read(arguments[0], _join(where, str(i)), item, newer) for i, item in enumerate(items))
    if origin is Mapping:
        items = sorted(_typed(where, value, dict, "an object").items())
        return {
            _read(arguments[0], where, key, newer): _read(arguments[1], _join(where, key), item, newer)
            for key, item in items
        }
    if hint is float:
        return _amount(where, value)
    if hint is bool:
        return _typed(where, value, bool, "true or false")
    if hint is str:
        return _typed(where, value, str, "a string")
    return plain(value)


def _read_fields(hint: Any, where: str, value: Any, newer: bool) -> Any:
    given = _typed(where, value, dict, "an object")
    hints = typing.get_type_hints(hint, include_extras=True)
    known = [field.name for field in fields(hint) if newer or field.default is MISSING]
    for key in known:
        if key not in given:
            raise WrongValueError(f"{_join(where, key)}: expected a value, got nothing")
    for key in sorted(given):
        if key not in known:
            raise wrong(_join(where, format_key(key)), "no such key", given[key])
    return hint(**{key: _read(hints[key], _join(where, key), given[key], newer) for key in known})


# ---- rules for Annotated


def integer(at_least: int | None = None) -> Rule:
    """An integer in plain digits, at least ``at_least`` and below 2^53."""
    wanted = "an integer" if at_least is None else f"an integer >= {at_least}"
    lowest = -MAX_INTEGER if at_least is None else at_least

    def read(where: str, value: Any) -> int:
        number = plain_digits(value)
        if number is None or not lowest <= number <= MAX_INTEGER:
            raise wrong(where, wanted, value)
        return number

    return read


def one_of(*known: str) -> Rule:
    """One of the known words."""

    def read(where: str, value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            raise wrong(where, f"one of [{', '.join(known)}]", value)
        return value

    return read


def matching(pattern: re.Pattern[str], wanted: str) -> Rule:
    """A string that matches the whole pattern."""

    def read(where: str, value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise wrong(where, wanted, value)
        return value

    return read


# ---- messages


def wrong(where: str, wanted: str, value: Any) -> WrongValueError:
    """The exception for a wrong value."""
    return WrongValueError(f"{where}{': ' if where else ''}expected {wanted}, got {format_value(value)}")


def format_value(value: Any) -> str:
    """A value for a message: compact ASCII JSON on one line, cut after 60 characters."""
    text = ""
    for piece in _compact(value):
        text += piece
        if len(text) > MAX_SHOWN:  # do not format a large value only to cut it off
            break
    return truncate(text, MAX_SHOWN)


def format_key(key: str) -> str:
    """A key for a message: unchanged if it is a plain name, else as ASCII JSON."""
    return key if PLAIN_NAME.fullmatch(key) else format_value(key)


def to_ascii(text: str) -> str:
    """An untrusted text as one line of ASCII: terminals act on some other characters."""
    return "".join(letter if " " <= letter <= "~" else letter.encode("unicode_escape").decode() for letter in text)


def _compact(value: Any) -> Iterator[str]:
    """JSON with sorted keys; floats with the twelve digits that printf gives in any language."""
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
