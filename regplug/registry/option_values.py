"""Reads an option's value as its type hint says; a value that cannot be checked is refused."""

from __future__ import annotations

import math
import numbers
import typing
from collections import abc
from collections.abc import Mapping, Sequence, Set
from contextvars import ContextVar
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum, Flag
from functools import reduce
from operator import or_
from typing import Any, Literal

from regplug.errors import class_name, one_line
from regplug.registry.dtypes import find_dtype
from regplug.registry.integers import is_int
from regplug.registry.stored_values import UnfitError, checked, exact_scalar, is_list, plain_key
from regplug.registry.type_hints import (
    ANYTHING,
    UNIONS,
    format_hint,
    hints_of,
    is_dtype,
    is_typed_dict,
    marker_of,
    members_of,
    without_alias,
)
from regplug.registry.untrusted_values import exact, repr_of

LISTS = (list, abc.Sequence, abc.MutableSequence, abc.Collection, abc.Iterable)
MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)

# the values that did not fit a hint in this ``read``: types that hold each other would double the work at each level
_misfits: ContextVar[dict[tuple[int, Any], tuple[object, str]]] = ContextVar("misfits")


def read(value: object, hint: Any) -> Any:
    """The value as a constructor with this hint takes it: an Enum's member, a tuple, a dataclass.

    A member of an Enum is given by its value or its name, a dataclass, named tuple or typed dict by a mapping, a
    ``torch.dtype`` by its name; lists and dicts are copied. Of any other class, only instances fit.

    Raises:
        UnfitError: The value does not have the type of ``hint``.
    """
    token = _misfits.set({})
    try:
        return _read(value, hint)
    finally:
        _misfits.reset(token)


def _read(value: object, hint: Any) -> Any:
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
    if is_typed_dict(origin or hint):
        return _read_typed_dict(value, origin or hint, arguments)
    if hint is None or hint is type(None):
        return checked(value, value is None)
    if isinstance(origin or hint, type):
        return _read_class(value, origin or hint, arguments)
    if isinstance(hint, typing.ForwardRef):
        raise UnfitError("its type cannot be read at run time: import it outside of TYPE_CHECKING")
    raise UnfitError


class _Only:
    """A hint for this one value: the values of a Literal are read like the types of a Union."""

    def __init__(self, value: object) -> None:
        self.value = value


def _read_any_of(value: object, hints: Sequence[Any]) -> Any:
    details = []
    misfits = _misfits.get() if isinstance(value, Mapping) or is_list(value) else {}
    for hint in hints:
        if (id(value), hint) not in misfits:
            try:
                return _read(value, hint)
            except UnfitError as error:
                misfits[id(value), hint] = value, str(error)
        details.append(misfits[id(value), hint][1])
    raise UnfitError(next(filter(None, details), ""))


def _generality(hint: Any) -> int:
    """The order in a Union, lowest first: a text that names an Enum's member means the member."""
    hint = without_alias(hint)
    cls = typing.get_origin(hint) or hint
    if hint in ANYTHING:
        return 2
    if cls is Literal or is_typed_dict(cls):
        return 0
    is_special = isinstance(cls, type) and (issubclass(cls, (Enum, tuple)) or is_dataclass(cls) or is_dtype(cls))
    return 0 if is_special else 1


def _read_only(value: object, wanted: object) -> Any:
    value = exact_scalar(value)
    if isinstance(wanted, Enum):
        return checked(wanted, _read_member(value, type(wanted)) is wanted)
    return checked(wanted, type(value) is type(wanted) and value == wanted)


def _read_class(value: object, cls: type, arguments: tuple[Any, ...]) -> Any:
    if issubclass(cls, Enum):
        return _read_member(value, cls)
    if is_dataclass(cls):
        return _read_dataclass(value, cls, arguments)
    if issubclass(cls, tuple):
        return _read_tuple(value, cls, arguments)
    if cls is bool:
        return checked(value, isinstance(value, bool))
    if cls in (int, numbers.Integral):
        return int(checked(value, is_int(value)))
    if cls in (float, numbers.Real, numbers.Number):
        # NaN passes a constructor's check with `<`, and would first be seen in the output
        if is_int(value):
            return int(value)
        return float(checked(value, isinstance(value, float) and not math.isnan(value)))
    if cls is str:
        return exact(checked(value, isinstance(value, str)))
    if cls in LISTS:
        inner = arguments[0] if arguments else Any
        return [_read(item, inner) for item in checked(value, is_list(value))]
    if cls in MAPPINGS:
        return _read_mapping(value, *(arguments or (Any, Any)))
    if is_dtype(cls):
        return _read_dtype(value, cls)
    try:
        return checked(value, isinstance(value, cls))
    except TypeError:  # a protocol that cannot be checked at run time
        raise UnfitError from None


def _read_member(value: object, cls: type[Enum]) -> Enum:
    if isinstance(value, cls):
        return value
    value = exact_scalar(value)
    if issubclass(cls, Flag) and is_int(value):
        known = reduce(or_, (member.value for member in members_of(cls)), 0)
        return cls(checked(value, value & ~known == 0))
    for member in members_of(cls):
        if type(member.value) is type(value) and member.value == value:
            return member
    if isinstance(value, str) and value in cls.__members__:
        return cls.__members__[value]
    raise UnfitError


def _read_mapping(value: object, key_hint: Any, item_hint: Any) -> dict[Any, Any]:
    """A new dict in the order of a bundle's sorted JSON, because a module may be built in the order of the keys."""
    found: dict[Any, Any] = {}
    for given, item in checked(value, isinstance(value, Mapping)).items():
        key = _read(given, key_hint)
        if key in found:
            raise UnfitError(f"two keys mean {repr_of(key)}")
        found[key] = _read(item, item_hint)
    try:
        return dict(sorted(found.items(), key=lambda pair: plain_key(pair[0])))
    except UnfitError:  # keys that are not texts; they cannot be stored either
        return found


def _read_dataclass(value: object, cls: type, arguments: Sequence[Any]) -> Any:
    if type(value) is cls:
        return value
    known = {one.name: one for one in fields(cls) if one.init}
    required = {name for name, one in known.items() if one.default is MISSING and one.default_factory is MISSING}
    return _made(cls, **_read_fields(value, hints_of(cls, arguments), known.keys(), required))


def _read_tuple(value: object, cls: type, arguments: tuple[Any, ...]) -> Any:
    if hasattr(cls, "_fields"):  # a named tuple
        if not isinstance(value, Mapping):
            items = checked(value, is_list(value) and len(value) == len(cls._fields))
            value = dict(zip(cls._fields, items, strict=True))
        required = set(cls._fields) - cls._field_defaults.keys()  # type: ignore[attr-defined]
        return _made(cls, **_read_fields(value, hints_of(cls, arguments), set(cls._fields), required))
    items = checked(value, is_list(value))
    if arguments and arguments[-1] is not Ellipsis:
        checked(value, len(items) == len(arguments))
        items = tuple(map(_read, items, arguments))
    else:
        items = tuple(_read(item, arguments[0] if arguments else Any) for item in items)
    return items if cls is tuple else _made(cls, items)


def _read_typed_dict(value: object, cls: Any, arguments: Sequence[Any]) -> dict[str, Any]:
    hints = hints_of(cls, arguments)
    # a class with its hints as texts counts every field as required
    required = {
        name
        for name, hint in hints.items()
        if marker_of(hint) == "Required" or (marker_of(hint) != "NotRequired" and name in cls.__required_keys__)
    }
    return dict(sorted(_read_fields(value, hints, hints.keys(), required).items()))


def _read_fields(value: object, hints: Mapping[str, Any], known: Set[str], required: Set[str]) -> dict[str, Any]:
    given = checked(value, isinstance(value, Mapping))
    for wrong, keys in (("unknown", given.keys() - known), ("missing", required - given.keys())):
        if keys:
            raise UnfitError(f"{wrong}: {', '.join(sorted(map(str, keys)))}")
    found = {}
    for name, item in given.items():
        try:
            found[name] = _read(item, hints.get(name, Any))
        except UnfitError as error:
            detail = str(error) or f"expected {format_hint(hints.get(name, Any))}, got {repr_of(item)}"
            raise UnfitError(f"{name}: {detail}") from None
    return found


def _made(cls: type, /, *arguments: Any, **named: Any) -> Any:
    try:
        return cls(*arguments, **named)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # any exception of a plugin's class means: not with these values
        raise UnfitError(f"{class_name(error)}: {one_line(error)}") from error


def _read_dtype(value: object, cls: type) -> Any:
    if isinstance(value, str):
        value = find_dtype(value.removeprefix("torch."))
    return checked(value, isinstance(value, cls))


def _new(value: object) -> Any:
    """A copy of lists and dicts, so that the caller's stay unchanged."""
    if isinstance(value, Mapping):
        return _read_mapping(value, Any, Any)
    if is_list(value) and not hasattr(value, "_fields"):
        return [_new(item) for item in value]
    return value if isinstance(value, Enum) else exact_scalar(value)
