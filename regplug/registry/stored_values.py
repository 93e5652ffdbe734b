"""Writes an option's value as JSON, and compares values: a bundle must give back the same value."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cached_property
from typing import Any, TypeGuard

from regplug.registry.type_hints import defaults_of, is_dtype, is_json_scalar, stored_member
from regplug.registry.untrusted_values import exact


class UnfitError(Exception):
    """A value does not fit its hint, or has no JSON form; the message is a detail, often empty."""


def plain(value: object) -> Any:
    """The value as JSON gives it back.

    Raises:
        UnfitError: It has no JSON form: a class, a function, NaN, a mapping with other keys than text, ...
    """
    if isinstance(value, Enum):
        return stored_member(value)
    value = exact_scalar(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return checked(value, is_json_scalar(value))
    if is_dtype(type(value)):
        return str(value).removeprefix("torch.")
    if is_dataclass(value) and not isinstance(value, type):
        return _plain_fields(value, [one.name for one in fields(value) if one.init])
    if isinstance(value, Mapping):
        found = {plain_key(key): plain(item) for key, item in value.items()}
        return {key: found[key] for key in sorted(found)}  # as a bundle's sorted JSON gives them back
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _plain_fields(value, value._fields)
    if is_list(value):
        return [plain(item) for item in value]
    raise UnfitError


def plain_key(key: object) -> str:
    """A mapping's key as JSON has it.

    Raises:
        UnfitError: It is not a text.
    """
    text = plain(key)
    if not isinstance(text, str):
        raise UnfitError("the keys of a JSON object are texts")
    return text


def same(one: object, other: object) -> bool:
    """Whether two values that ``plain`` takes are of the same types and equal."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(item, other[key]) for key, item in one.items())
    if is_list(one) and is_list(other):
        return len(one) == len(other) and all(map(same, one, other))
    if is_dataclass(one):
        mine, others = _state(one), _state(other)
        return mine.keys() == others.keys() and all(same(item, others[name]) for name, item in mine.items())
    return one is other or _are_equal(one, other)


def freeze(value: Any) -> Any:
    """A read-only copy of a JSON value: tuples for lists, read-only mappings for dicts."""
    if isinstance(value, Mapping):
        return types.MappingProxyType({key: freeze(item) for key, item in value.items()})
    return tuple(map(freeze, value)) if is_list(value) else value


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether it is a list in JSON; lists of configuration libraries are too."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def exact_scalar(value: Any) -> Any:
    """A text or a number of a subclass, such as numpy's ``float64`` or ``str_``, as a plain one."""
    if isinstance(value, Enum) or type(value) in (bool, type(None)):
        return value
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    return exact(value) if isinstance(value, str) else value


def _state(value: Any) -> dict[str, Any]:
    """All attributes of a dataclass's instance, those made from an InitVar too, without cached results."""
    kept = {one.name: getattr(value, one.name, None) for one in fields(value)} | getattr(value, "__dict__", {})
    return {name: item for name, item in kept.items() if not _is_cached(type(value), name)}


def _is_cached(cls: type, name: str) -> bool:
    return isinstance(getattr(cls, name, None), cached_property)


def _are_equal(one: Any, other: Any) -> bool:
    try:
        return (exact_scalar(one) == exact_scalar(other)) is True  # tensors and arrays compare by element, or raise
    except Exception:  # a class that cannot be compared
        return False


def checked(value: Any, is_right: bool) -> Any:
    """The value, or UnfitError where it is not right."""
    if not is_right:
        raise UnfitError
    return value


def _plain_fields(value: Any, names: Iterable[str]) -> dict[str, Any]:
    defaults = defaults_of(type(value))
    found = {}
    for name in names:
        kept = getattr(value, name, MISSING)
        try:
            found[name] = plain(kept)
        except UnfitError:
            if kept is MISSING or kept is not defaults.get(name, MISSING):  # a default need not be stored
                raise
    return found
