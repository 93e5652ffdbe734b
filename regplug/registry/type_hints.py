"""What a type hint means: its type, its text for users, the values that it allows."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import math
import sys
import types
import typing
from collections import abc
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum, Flag
from typing import Any, Literal, Optional, Union

from regplug.registry.integers import MAX_INTEGER

UNIONS = (Union, types.UnionType)
ANYTHING = (Any, object)
MARKERS = ("Required", "NotRequired", "ReadOnly", "Final")


def hints_of(cls: Any, arguments: Sequence[Any] = ()) -> Mapping[str, Any]:
    """The type hints of a class's fields, with the arguments of a generic class: ``Box[int]`` has ``item: int``."""
    try:
        return _hints_of(cls, tuple(arguments))
    except TypeError:  # an argument has no hash
        return _hints_of.__wrapped__(cls, tuple(arguments))


@functools.lru_cache(maxsize=64)  # an option may be a list of a thousand dataclasses
def _hints_of(cls: Any, arguments: tuple[Any, ...]) -> Mapping[str, Any]:
    found = {}
    given = _arguments_of_bases(cls, arguments)
    for base in reversed(cls.__mro__):
        names = _names_around(base)
        for name, hint in inspect.get_annotations(base).items():
            found[name] = _with_arguments(read_hint(hint, names), given.get(base, {}))
    for name, default in defaults_of(cls).items():
        found[name] = with_default(found.get(name, Any), default)
    return found


def with_default(hint: Any, default: object) -> Any:
    """A hint with what the default adds: None, if that is the default; its type, if the hint cannot be read."""
    if default is None:
        try:
            return Optional[hint]  # noqa: UP045 - any hint
        except TypeError:  # an annotation that is not a type
            return hint
    return type(default) if isinstance(hint, typing.ForwardRef) else hint


def defaults_of(cls: Any) -> dict[str, Any]:
    """The defaults of a dataclass's or a named tuple's fields."""
    if is_dataclass(cls):
        return {one.name: one.default for one in fields(cls) if one.default is not MISSING}
    return dict(getattr(cls, "_field_defaults", {}))


def names_for(build: Any) -> dict[str, Any]:
    """The names that the hints of a class's or a function's parameters may use."""
    while isinstance(build, functools.partial):
        build = build.func
    if isinstance(build, type):
        functions = [type(build).__call__, build.__new__, build.__init__]  # type: ignore[misc]
    else:
        functions = [build if hasattr(build, "__globals__") or hasattr(build, "__func__") else type(build).__call__]
    names = _names_around(build)
    for function in functions:
        names |= getattr(inspect.unwrap(function), "__globals__", {})
    return names


def read_hint(hint: Any, names: dict[str, Any]) -> Any:
    """A hint with its texts evaluated; a ForwardRef if a name is missing."""
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"it": hint}), names, None, True)["it"]
    except KeyboardInterrupt:
        raise
    except BaseException:  # a plugin's text may raise anything
        text = hint if isinstance(hint, str) else getattr(hint, "__forward_arg__", str(hint))
        return typing.ForwardRef(text if _is_expression(text) else "unreadable")


def without_alias(hint: Any) -> Any:
    """The type behind NewType, Annotated, NotRequired, ``type X = ...`` or a TypeVar with a bound."""
    while True:
        if isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        elif typing.get_origin(hint) is typing.Annotated or marker_of(hint) in MARKERS:
            hint = hint.__origin__ if typing.get_origin(hint) is typing.Annotated else typing.get_args(hint)[0]
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        elif isinstance(hint, typing.TypeVar) and (hint.__bound__ or hint.__constraints__):
            hint = hint.__bound__ or Union[hint.__constraints__]  # noqa: UP007
        elif hint is getattr(typing, "LiteralString", None):
            hint = str
        else:
            return hint


def allows_none(hint: Any) -> bool:
    """Whether a hint names None: ``int | None`` does, and a parameter without a hint does not."""
    hint = without_alias(hint)
    if typing.get_origin(hint) in UNIONS:
        return any(map(allows_none, typing.get_args(hint)))
    return hint is type(None)


def marker_of(hint: Any) -> str | None:
    """``"Required"``, ``"NotRequired"``, ... where a hint is one of these around a type."""
    return getattr(typing.get_origin(hint), "_name", None)


def format_hint(hint: Any) -> str:
    """A hint as text for users; of an Enum also its values."""
    hint = without_alias(hint)
    if hint in ANYTHING:
        return "any JSON value"
    if typing.get_origin(hint) in UNIONS:
        return " | ".join(map(format_hint, typing.get_args(hint)))
    if hint is type(None):
        return "None"
    if isinstance(hint, typing.ForwardRef):
        return hint.__forward_arg__.removesuffix(" | None")
    if isinstance(hint, type) and not typing.get_args(hint):
        if issubclass(hint, Enum):
            return f"{hint.__name__} ({', '.join(repr(stored_member(member)) for member in members_of(hint))})"
        names = field_names(hint)
        if names is not None:
            return f"{hint.__name__} ({', '.join(names)})"
        return "torch.dtype" if is_dtype(hint) else hint.__name__
    return str(hint).replace("typing.", "")


def choices(hint: Any) -> list[Any] | None:
    """All values of an Enum, a Literal or a bool, as JSON values; None of another hint."""
    hint = without_alias(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        each = [choices(one) for one in arguments]
        return None if None in each else [value for one in each for value in one or ()]
    if origin is Literal:
        values = [stored_member(one) if isinstance(one, Enum) else one for one in arguments]
        return [value for value in values if is_json_scalar(value)]
    if hint is type(None):
        return [None]
    if hint is bool:
        return [False, True]
    if isinstance(hint, type) and not arguments and issubclass(hint, Enum) and not issubclass(hint, Flag):
        return [stored_member(member) for member in hint]
    return None


def field_names(hint: Any) -> list[str] | None:
    """The fields of a dataclass, a named tuple or a typed dict; None of another class."""
    if is_dataclass(hint):
        return [one.name for one in fields(hint) if one.init]
    if is_typed_dict(hint):
        return list(hint.__annotations__)
    return list(hint._fields) if issubclass(hint, tuple) and hasattr(hint, "_fields") else None


def is_typed_dict(hint: Any) -> bool:
    """Whether a hint is a TypedDict, of ``typing`` or of ``typing_extensions``."""
    return typing.is_typeddict(hint) or type(hint).__name__ == "_TypedDictMeta"


def is_dtype(cls: type) -> bool:
    """Whether a class is ``torch.dtype``."""
    return (cls.__module__, cls.__qualname__) == ("torch", "dtype")  # known without importing torch


def members_of(cls: type[Enum]) -> list[Enum]:
    """The members of an Enum; of a Flag also those of several bits, which iteration may leave out."""
    return list(dict.fromkeys(cls.__members__.values()))


def stored_member(member: Enum) -> Any:
    """An Enum's member in JSON: its value, or its name if the value is not a JSON scalar."""
    return member.value if is_json_scalar(member.value) else member.name


def is_json_scalar(value: object) -> bool:
    """Whether a value is exactly a text, a number, a bool or None that JSON gives back unchanged, in C++ too."""
    if type(value) is int:
        return -MAX_INTEGER <= value <= MAX_INTEGER
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is str:
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    return value is None or type(value) is bool


def _names_around(target: Any) -> dict[str, Any]:
    """The names that a hint in a class or module may use; ``typing`` is often imported for type checkers only."""
    own = dict(vars(target)) if isinstance(target, type) else {}  # a class inside the class
    module = sys.modules.get(getattr(target, "__module__", None) or "")
    return {**vars(typing), **vars(abc), **own, **vars(builtins), **(vars(module) if module else {})}


def _arguments_of_bases(cls: Any, arguments: Sequence[Any]) -> dict[Any, dict[Any, Any]]:
    """For a class and each of its bases, the types of its type variables."""
    own = dict(zip(getattr(cls, "__parameters__", ()), arguments, strict=False))
    found = {cls: own}
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        origin = typing.get_origin(base) or base
        if isinstance(origin, type):
            found |= _arguments_of_bases(origin, [_with_arguments(one, own) for one in typing.get_args(base)])
    return found


def _with_arguments(hint: Any, given: dict[Any, Any]) -> Any:
    if isinstance(hint, typing.TypeVar):
        return given.get(hint, hint)
    free = getattr(hint, "__parameters__", ())
    if not given or not free or (isinstance(hint, type) and not typing.get_args(hint)):
        return hint
    return hint[tuple(given.get(one, one) for one in free)]


def _is_expression(text: str) -> bool:
    try:
        return bool(ast.parse(text, mode="eval"))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
