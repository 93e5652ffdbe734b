"""What a type hint says: which type it stands for, how users read it, which values it counts."""

from __future__ import annotations

import sys
import types
import typing
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum, Flag
from typing import Any, Literal, Union

UNIONS = (Union, types.UnionType)
ANYTHING = (Any, object)
SCALARS = (bool, int, float, str, type(None))


def hints_of(target: Any) -> dict[str, Any]:
    """The type hints of a class's fields or a function's parameters; those that cannot be read are left out."""
    with suppress(Exception, SystemExit):
        return typing.get_type_hints(target)
    found: dict[str, Any] = {}
    with suppress(Exception, SystemExit):  # one hint names what only a type checker imports; the others still hold
        module = sys.modules.get(target.__module__)
        names = getattr(target, "__globals__", None) or (vars(module) if module else {})
        for name, hint in target.__annotations__.items():
            with suppress(Exception, SystemExit):
                found |= typing.get_type_hints(types.SimpleNamespace(__annotations__={name: hint}), names)
    return found


def without_alias(hint: Any) -> Any:
    """The type that a hint stands for: of NewType, Annotated, ``type X = ...``, a TypeVar's bound."""
    while True:
        if isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        elif hasattr(hint, "__metadata__"):
            hint = hint.__origin__
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        elif isinstance(hint, typing.TypeVar) and (hint.__bound__ or hint.__constraints__):
            hint = hint.__bound__ or Union[hint.__constraints__]  # noqa: UP007
        elif hint is getattr(typing, "LiteralString", None):
            hint = str
        else:
            return hint


def spell(hint: Any) -> str:
    """A hint as users read it; of an Enum also what may be given."""
    hint = without_alias(hint)
    if hint in ANYTHING:
        return "any JSON value"
    if typing.get_origin(hint) in UNIONS:
        return " | ".join(map(spell, typing.get_args(hint)))
    if hint is type(None):
        return "None"
    if isinstance(hint, type) and not typing.get_args(hint):
        if issubclass(hint, Enum):
            return f"{hint.__name__} ({', '.join(repr(stored_member(member)) for member in hint)})"
        if is_dataclass(hint):
            return f"{hint.__name__} ({', '.join(one.name for one in fields(hint) if one.init)})"
        return "torch.dtype" if is_dtype(hint) else hint.__name__
    return str(hint).replace("typing.", "")


def choices(hint: Any) -> list[Any] | None:
    """All values of a hint, as JSON gives them, where they can be counted: of an Enum, a Literal, a bool."""
    hint = without_alias(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        each = [choices(one) for one in arguments]
        return None if None in each else [value for one in each for value in one or ()]
    if origin is Literal:
        return [stored_member(one) if isinstance(one, Enum) else one for one in arguments]
    if hint is type(None):
        return [None]
    if hint is bool:
        return [False, True]
    if isinstance(hint, type) and not arguments and issubclass(hint, Enum) and not issubclass(hint, Flag):
        return [stored_member(member) for member in hint]
    return None


def is_dtype(cls: type) -> bool:
    """Whether a class is ``torch.dtype``."""
    return (cls.__module__, cls.__qualname__) == ("torch", "dtype")  # known without importing torch


def stored_member(member: Enum) -> Any:
    """An Enum's member as JSON has it: its value, or its name where the value is no JSON scalar."""
    return member.value if type(member.value) in SCALARS else member.name
