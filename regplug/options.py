"""Checks a strategy's options against the constructor, which is their only schema."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeGuard, Union

from regplug.entries import SIZES
from regplug.errors import SpecError
from regplug.foreign import repr_of
from regplug.layout import is_int

MOST_LISTED = 60


def closest(word: str, known: Sequence[str]) -> str:
    """``; known: a, b (closest: a)``, the end of a message about an unknown word; of hundreds only the closest."""
    from difflib import get_close_matches

    if not known:
        return "; known: none"
    if len(known) > MOST_LISTED:
        near = get_close_matches(word, known, n=5) or sorted(name for name in known if word in name)[:5]
        return f"; closest of {len(known)}: {', '.join(near) or 'none'}"
    near = get_close_matches(word, known, n=1)
    return f"; known: {', '.join(sorted(known))}" + (f" (closest: {near[0]})" if near else "")


def bind(
    owner: str,
    build: Callable[..., Any],
    sizes: Mapping[str, int],
    options: Mapping[str, Any],
    words: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The keyword arguments for ``build``: the sizes that its constructor names, and the options.

    Args:
        owner: Whose options these are, for messages.
        build: The class to be called.
        sizes: Values of the words that the registry passes (``num_registers``, ``hidden_dim``).
        options: The user's options.
        words: The constructor's own words for the sizes, to the registry's.

    Returns:
        Arguments that bind to the constructor's signature. A list stands as a tuple where the type hint is a
        tuple, for JSON has no tuples.

    Raises:
        SpecError: An option is unknown, missing, or of the wrong type, or is one of the sizes.
    """
    parameters = parameters_of(owner, build)
    named = {word: sizes[size] for word, size in (words or {}).items() if size in sizes}
    named |= {size: value for size, value in sizes.items() if size in parameters and size not in named}
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    known = [
        name
        for name, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in named
    ]
    hints = _hints(build)
    arguments: dict[str, Any] = dict(named)
    for option, value in options.items():
        if option in named or option in sizes:
            raise SpecError(f"{owner}: option {option!r}: expected an option, got one of the sizes.")
        if option not in known and not open_ended:
            raise SpecError(
                f"{owner}: option {option!r}: expected a known option, got {value!r}{closest(option, known)}."
            )
        hint = hints.get(option, Any)
        if not fits(value, hint):
            raise SpecError(f"{owner}: option {option!r}: expected {_spell(hint)}, got {value!r}.")
        if _is_list(value):  # a list of JSON where a tuple is meant, a list of a configuration library
            value = tuple(value) if isinstance(value, tuple) or _means_tuple(hint) else list(value)
        arguments[option] = value
    missing = [n for n in known if parameters[n].default is inspect.Parameter.empty and n not in arguments]
    if missing:
        wanted = ", ".join(f"{name}: {_spell(hints.get(name, Any))}" for name in missing)
        raise SpecError(f"{owner}: expected option {wanted}, got none.")
    return arguments


def describe(build: Callable[..., Any], words: Mapping[str, str] | None = None) -> dict[str, str]:
    """The options that a constructor takes, each with its type and default as text."""
    known = {*SIZES, *(words or {})}
    return {name: text for name, text in _parameters(build).items() if name not in known}


def describe_signature(build: Callable[..., Any]) -> str:
    """How a constructor is called: ``Name(num_registers: int, eps: float = 1e-06)``."""
    return f"{_name(build)}({', '.join(f'{name}: {text}' for name, text in _parameters(build).items())})"


def _parameters(build: Callable[..., Any]) -> dict[str, str]:
    hints = _hints(build)
    return {
        name: _spell(hints.get(name, Any))
        + ("" if p.default is inspect.Parameter.empty else f" = {repr_of(p.default)}")
        for name, p in parameters_of(_name(build), build).items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def fits(value: object, hint: Any) -> bool:
    """Whether ``value`` has the type of ``hint``; what is not understood is let through to the constructor."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in arguments)
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        if not _is_list(value):
            return False
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            return len(value) == len(arguments) and all(map(fits, value, arguments))
        return not arguments or all(fits(item, arguments[0]) for item in value)
    if origin in (dict, Mapping) and arguments:
        key, inner = arguments  # another library's mapping counts, as its lists do
        return isinstance(value, Mapping) and all(fits(k, key) and fits(v, inner) for k, v in value.items())
    if hint is int:
        return is_int(value)
    if hint is float:
        # NaN passes what a constructor refuses by `<`, and shows in the output first
        return is_int(value) or (isinstance(value, float) and not math.isnan(value))
    if hint in (str, bool, dict, Mapping):
        return isinstance(value, hint)
    if hint is type(None):
        return value is None
    return True


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _means_tuple(hint: Any) -> bool:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return any(_means_tuple(one) for one in typing.get_args(hint))
    return hint is tuple or typing.get_origin(hint) is tuple


def parameters_of(owner: str, build: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """What the constructor takes.

    Raises:
        SpecError: It has no signature to read.
    """
    try:
        return inspect.signature(build).parameters
    except (TypeError, ValueError) as error:  # a class written in C may show none
        raise SpecError(f"{owner}: expected a class or function with a signature, got {repr_of(build)}.") from error


def _hints(build: Callable[..., Any]) -> Mapping[str, Any]:
    target = build.__init__ if isinstance(build, type) else build  # type: ignore[misc]
    try:
        return typing.get_type_hints(target)
    except (
        Exception,
        SystemExit,
    ):  # a hint may name what only a type checker imports: then the constructor alone judges
        return {}


def _name(build: Callable[..., Any]) -> str:
    return getattr(build, "__name__", repr(build))


def _spell(hint: Any) -> str:
    if hint is Any:
        return "any value"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
