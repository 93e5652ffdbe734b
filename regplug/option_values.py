"""Reads an option's value as its type hint says, and writes it as JSON; what cannot be checked is refused."""

from __future__ import annotations

import math
import numbers
import types
import typing
from collections import abc
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum, Flag
from functools import reduce
from operator import or_
from typing import Any, Literal, TypeGuard

from regplug.errors import message_of
from regplug.foreign import exact, repr_of
from regplug.layout import is_int
from regplug.strict import LARGEST
from regplug.type_hints import ANYTHING, UNIONS, hints_of, is_dtype, spell, stored_member, without_alias

LISTS = (list, abc.Sequence, abc.MutableSequence, abc.Collection, abc.Iterable)
MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)


class UnfitError(Exception):
    """A value is not what its hint says, or has no JSON form; the message is the detail, often empty."""


def read(value: object, hint: Any) -> Any:
    """The value as a constructor with this hint wants it: an Enum's member, a tuple, a dataclass.

    A member of an Enum is given by its value or its name, a dataclass, named tuple or typed dict by a mapping, a
    ``torch.dtype`` by its name; lists and dicts are new ones. Of a class that is none of these, only instances fit.

    Raises:
        UnfitError: The value does not have the type of ``hint``.
    """
    hint = without_alias(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in ANYTHING or isinstance(hint, typing.TypeVar):
        return _new(value)
    if origin in UNIONS:
        return _read_any_of(value, sorted(arguments, key=_generality))
    if origin is Literal:
        return _read_any_of(value, [_Only(one) for one in arguments])
    if isinstance(hint, _Only):
        return _read_only(value, hint.value)
    if typing.is_typeddict(origin or hint):
        return _read_typed_dict(value, origin or hint)
    if hint is None or hint is type(None):
        return _checked(value, value is None)
    if isinstance(origin or hint, type):
        return _read_class(value, origin or hint, arguments)
    raise UnfitError


def plain(value: object) -> Any:
    """The value as JSON gives it back.

    Raises:
        UnfitError: It has no JSON form: a class, a function, NaN, a mapping with other keys than text, ...
    """
    if isinstance(value, Enum):
        return stored_member(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _checked(int(value), -LARGEST < value < LARGEST)
    if isinstance(value, float):
        return _checked(float(value), math.isfinite(value))
    if isinstance(value, str):
        return _checked(exact(value), not any("\ud800" <= letter <= "\udfff" for letter in value))
    if is_dtype(type(value)):
        return str(value).removeprefix("torch.")
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(_attribute(value, one.name)) for one in fields(value) if one.init}
    if isinstance(value, Mapping):
        return {_checked(key, isinstance(key, str)): plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: plain(item) for name, item in zip(value._fields, value, strict=True)}
    if is_list(value):
        return [plain(item) for item in value]
    raise UnfitError


def same(one: object, other: object) -> bool:
    """Whether two values that ``plain`` takes are of the same types and equal."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(item, other[key]) for key, item in one.items())
    if is_list(one) and is_list(other):
        return len(one) == len(other) and all(map(same, one, other))
    if is_dataclass(one):
        return all(same(getattr(one, f.name, None), getattr(other, f.name, None)) for f in fields(one))
    return one == other


def freeze(value: Any) -> Any:
    """A JSON value that nobody can change: tuples for lists, read-only mappings for dicts."""
    if isinstance(value, Mapping):
        return types.MappingProxyType({key: freeze(item) for key, item in value.items()})
    return tuple(map(freeze, value)) if is_list(value) else value


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether JSON has it as a list; lists of configuration libraries count."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


class _Only:
    """As a hint: this one value. A Literal's values are read as a Union's types are."""

    def __init__(self, value: object) -> None:
        self.value = value


def _read_any_of(value: object, hints: Sequence[Any]) -> Any:
    details = []
    for hint in hints:
        try:
            return read(value, hint)
        except UnfitError as error:
            details.append(str(error))
    raise UnfitError(next(filter(None, details), ""))


def _generality(hint: Any) -> int:
    """What is read before what in a Union: a text that names an Enum's member means the member."""
    hint = without_alias(hint)
    cls = typing.get_origin(hint) or hint
    if hint in ANYTHING:
        return 2
    if cls is Literal or typing.is_typeddict(cls):
        return 0
    is_special = isinstance(cls, type) and (issubclass(cls, (Enum, tuple)) or is_dataclass(cls) or is_dtype(cls))
    return 0 if is_special else 1


def _read_only(value: object, wanted: object) -> Any:
    if isinstance(wanted, Enum):
        return _checked(wanted, _read_member(value, type(wanted)) is wanted)
    return _checked(wanted, type(value) is type(wanted) and value == wanted)


def _read_class(value: object, cls: type, arguments: tuple[Any, ...]) -> Any:
    if issubclass(cls, Enum):
        return _read_member(value, cls)
    if is_dataclass(cls):
        return _read_dataclass(value, cls)
    if issubclass(cls, tuple):
        return _read_tuple(value, cls, arguments)
    if cls is bool:
        return _checked(value, isinstance(value, bool))
    if cls in (int, numbers.Integral):
        return int(_checked(value, is_int(value)))
    if cls in (float, numbers.Real, numbers.Number):
        # NaN passes what a constructor refuses by `<`, and shows in the output first
        if is_int(value):
            return int(value)  # type: ignore[call-overload]
        return float(_checked(value, isinstance(value, float) and not math.isnan(value)))
    if cls is str:
        return exact(_checked(value, isinstance(value, str)))
    if cls in LISTS:
        inner = arguments[0] if arguments else Any
        return [read(item, inner) for item in _checked(value, is_list(value))]
    if cls in MAPPINGS:
        key, inner = arguments or (Any, Any)
        return {read(k, key): read(v, inner) for k, v in _checked(value, isinstance(value, Mapping)).items()}
    if is_dtype(cls):
        return _read_dtype(value, cls)
    try:
        return _checked(value, isinstance(value, cls))
    except TypeError:  # a protocol that cannot be asked
        raise UnfitError from None


def _read_member(value: object, cls: type[Enum]) -> Enum:
    if isinstance(value, cls):
        return value
    if issubclass(cls, Flag) and is_int(value):
        known = reduce(or_, (member.value for member in cls), 0)
        return cls(_checked(value, value & ~known == 0))  # type: ignore[operator]
    for member in cls.__members__.values():
        if type(member.value) is type(value) and member.value == value:
            return member
    if isinstance(value, str) and value in cls.__members__:
        return cls.__members__[value]
    raise UnfitError


def _read_dataclass(value: object, cls: type) -> Any:
    if type(value) is cls:
        return value
    known = {one.name: one for one in fields(cls) if one.init}
    required = {name for name, one in known.items() if one.default is MISSING and one.default_factory is MISSING}
    return _made(cls, _read_fields(value, hints_of(cls), set(known), required))


def _read_tuple(value: object, cls: type, arguments: tuple[Any, ...]) -> Any:
    if hasattr(cls, "_fields"):  # a named tuple
        if isinstance(value, Mapping):
            required = set(cls._fields) - cls._field_defaults.keys()  # type: ignore[attr-defined]
            return _made(cls, _read_fields(value, hints_of(cls), set(cls._fields), required))
        _checked(value, is_list(value) and len(value) == len(cls._fields))
        hints = hints_of(cls)
        return cls(*(read(item, hints.get(name, Any)) for name, item in zip(cls._fields, value, strict=True)))  # type: ignore[call-overload]
    items = _checked(value, is_list(value))
    if arguments and arguments[-1] is not Ellipsis:
        _checked(value, len(items) == len(arguments))
        return tuple(map(read, items, arguments))
    return tuple(read(item, arguments[0] if arguments else Any) for item in items)


def _read_typed_dict(value: object, cls: Any) -> dict[str, Any]:
    return _read_fields(value, hints_of(cls), set(cls.__annotations__), set(cls.__required_keys__))


def _read_fields(value: object, hints: Mapping[str, Any], known: set[str], required: set[str]) -> dict[str, Any]:
    given = _checked(value, isinstance(value, Mapping))
    for wrong, keys in (("unknown", given.keys() - known), ("missing", required - given.keys())):
        if keys:
            raise UnfitError(f"{wrong}: {', '.join(sorted(map(str, keys)))}")
    found = {}
    for name, item in given.items():
        try:
            found[name] = read(item, hints.get(name, Any))
        except UnfitError as error:
            detail = str(error) or f"expected {spell(hints.get(name, Any))}, got {repr_of(item)}"
            raise UnfitError(f"{name}: {detail}") from None
    return found


def _made(cls: type, arguments: Mapping[str, Any]) -> Any:
    try:
        return cls(**arguments)
    except Exception as error:  # whatever a plugin's class raises means: not with these values
        raise UnfitError(message_of(error)) from error


def _read_dtype(value: object, cls: type) -> Any:
    if isinstance(value, str):
        import torch

        value = vars(torch).get(value.removeprefix("torch."))
    return _checked(value, isinstance(value, cls))


def _new(value: object) -> Any:
    """Lists and dicts made new, so that the caller keeps its own."""
    if isinstance(value, Mapping):
        return {key: _new(item) for key, item in value.items()}
    if is_list(value) and not hasattr(value, "_fields"):
        return [_new(item) for item in value]
    return exact(value) if isinstance(value, str) and not isinstance(value, Enum) else value


def _checked(value: Any, is_right: bool) -> Any:
    if not is_right:
        raise UnfitError
    return value


def _attribute(value: object, name: str) -> object:
    try:
        return getattr(value, name)
    except AttributeError:  # an InitVar is not kept
        raise UnfitError from None
