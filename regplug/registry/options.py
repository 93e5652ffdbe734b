"""Checks a strategy's options against the constructor, which is their only schema."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from enum import Enum
from operator import itemgetter
from typing import Any

from regplug.errors import SpecError, class_name, closest, one_line
from regplug.registry.entries import SIZES
from regplug.registry.json_text import OPTION_NAME, WrongValueError, parse_json
from regplug.registry.option_values import read
from regplug.registry.stored_values import UnfitError, plain, same
from regplug.registry.type_hints import allows_none, format_hint, names_for, read_hint, with_default
from regplug.registry.untrusted_values import repr_of

MAX_OPTIONS = 1 << 20  # characters of all options as JSON; the header of a weights file holds them too
JSON_WORDS = {"True": "true", "False": "false", "None": "null"}


def bind(
    owner: str,
    build: Callable[..., Any],
    sizes: Mapping[str, Any],
    options: Mapping[str, Any],
    words: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The keyword arguments for ``build``: the sizes that its constructor names, and the options.

    Args:
        owner: What has these options, for messages.
        build: The class that will be called.
        sizes: Values of the words that the registry passes (``num_registers``, ``hidden_dim``).
        options: The user's options.
        words: The constructor's own words for the sizes, each with the registry's.

    Returns:
        Arguments that bind to the constructor's signature, each as its type hint says: a JSON list as a tuple, a
        name as an Enum's member, a JSON object as a dataclass. An option without annotation has the type of its
        default. Lists and dicts are copied.

    Raises:
        SpecError: An option is unknown, missing, or of the wrong type, or is one of the sizes.
    """
    parameters = parameters_of(owner, build)
    named = {word: sizes[size] for word, size in (words or {}).items() if size in sizes}
    named |= {size: value for size, value in sizes.items() if size in parameters and size not in named}
    open_ended = next((name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD), None)
    known = [
        name
        for name, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in named
    ]
    hints = hints_of_options(owner, build)
    rest = Any if open_ended is None else hints.pop(open_ended)  # the hint of ``**options: int`` is for each one
    arguments: dict[str, Any] = dict(named)
    for option, value in sorted(options.items(), key=itemgetter(0)):  # in the order of a bundle, for ``**options``
        if option in named or option in sizes:
            raise SpecError(f"{owner}: option {option!r}: expected an option, got one of the sizes.")
        if option not in known and open_ended is None:
            raise SpecError(
                f"{owner}: option {option!r}: expected a known option, got {repr_of(value)}{closest(option, known)}."
            )
        arguments[option] = _read(owner, option, value, hints.get(option, rest))
    missing = [n for n in known if parameters[n].default is inspect.Parameter.empty and n not in arguments]
    if missing:
        wanted = ", ".join(f"{name}: {format_hint(hints[name])}" for name in missing)
        raise SpecError(f"{owner}: expected option {wanted}, got none.")
    return arguments


def stored_options(
    owner: str,
    build: Callable[..., Any],
    sizes: Mapping[str, int | None],
    options: Mapping[str, Any],
    words: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The options as JSON stores them; ``bind`` reads them back as the same arguments. It takes what ``bind`` takes.

    Raises:
        SpecError: As ``bind``; or a value has no JSON form, or would be read back as another value.
    """
    arguments = bind(owner, build, sizes, options, words)
    stored = json_options(owner, {option: arguments[option] for option in options})
    again = bind(owner, build, sizes, stored, words)
    for option, value in stored.items():
        if not same(arguments[option], again[option]):
            given, found = repr_of(arguments[option]), repr_of(again[option])
            raise SpecError(
                f"{owner}: option {option!r}: expected a value that its stored form gives back, got {given}, which is "
                f"stored as {repr_of(value)} and read as {found}{' with other attributes' if given == found else ''}."
            )
    return stored


def json_options(owner: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as JSON gives them back.

    Raises:
        SpecError: A name or a value cannot be in a bundle: it has no JSON form, or is too large or too deep.
    """
    stored = {}
    length = 0
    for option, value in sorted(options.items(), key=itemgetter(0)):
        if not OPTION_NAME.fullmatch(option):
            raise SpecError(
                f"{owner}: option {option!r}: expected a name of at most 128 ASCII letters, digits and _, which can be "
                "stored, got another."
            )
        try:
            stored[option] = plain(value)
            text = json.dumps(stored[option])
            parse_json(f'{{"options":{{"_":{text}}}}}'.encode())  # at the depth that it has in a manifest
        except RecursionError:
            detail = "nested too deep"
        except (UnfitError, WrongValueError) as error:
            detail = str(error) or "only such options can be stored"
        else:
            length += len(text)
            if length <= MAX_OPTIONS:
                continue
            detail = f"all options together may have {MAX_OPTIONS} characters"
        raise SpecError(f"{owner}: option {option!r}: expected a JSON value, got {repr_of(value)}; {detail}.")
    return stored


def describe(build: Callable[..., Any], words: Mapping[str, str] | None = None) -> dict[str, str]:
    """The options that a constructor takes, each with its type and default as text."""
    known = {*SIZES, *(words or {})}
    return {name: text for name, text in _parameters(build).items() if name not in known}


def describe_signature(build: Callable[..., Any]) -> str:
    """How a constructor is called: ``Name(num_registers: int, eps: float = 1e-06)``."""
    return f"{_name(build)}({', '.join(f'{name}: {text}' for name, text in _parameters(build).items())})"


def _parameters(build: Callable[..., Any]) -> dict[str, str]:
    hints = hints_of_options(_name(build), build)
    return {
        name: format_hint(hints[name]) + ("" if p.default is inspect.Parameter.empty else f" = {_default(p.default)}")
        for name, p in parameters_of(_name(build), build).items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def _default(default: object) -> str:
    return repr_of(plain(default) if isinstance(default, Enum) else default)


def _read(owner: str, option: str, value: object, hint: Any) -> Any:
    try:
        return read(value, hint)
    except RecursionError:
        detail = "nested too deep"
    except UnfitError as error:
        detail = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a value of another library may raise; OmegaConf's does if it is missing
        detail = f"{class_name(error)}: {one_line(error)}"
    if isinstance(value, str) and value in JSON_WORDS:
        detail = f"use {JSON_WORDS[value]} in JSON and on the command line"
    wanted = f"{owner}: option {option!r}: expected {format_hint(hint)}, got {repr_of(value)}"
    raise SpecError(f"{wanted}; {detail}." if detail else f"{wanted}.")


def parameters_of(owner: str, build: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The constructor's parameters.

    Raises:
        SpecError: It has no signature that can be read.
    """
    try:
        return inspect.signature(build).parameters
    except (TypeError, ValueError) as error:  # a class written in C may have none
        raise SpecError(f"{owner}: expected a class or function with a signature, got {repr_of(build)}.") from error


def hints_of_options(owner: str, build: Callable[..., Any]) -> dict[str, Any]:
    """Each parameter's type: as annotated; if that is missing or cannot be read, the type of its default."""
    names = names_for(build)
    hints = {}
    for name, parameter in parameters_of(owner, build).items():
        default, annotation = parameter.default, parameter.annotation
        if annotation is not parameter.empty:
            hint = read_hint(annotation, names)
            hints[name] = hint if default is parameter.empty else with_default(hint, default)
        else:
            hints[name] = Any if default is None or default is parameter.empty else type(default)
    return hints


def check_any_count(owner: str, build: Callable[..., Any], words: Mapping[str, str] | None = None) -> None:
    """Refuse a constructor that needs a fixed number of registers: its ``num_registers`` may not be None.

    One that does not name ``num_registers`` at all is accepted; measuring shows whether its forward takes any number.

    Raises:
        SpecError: The type hint of ``num_registers`` does not allow None.
    """
    hints = hints_of_options(owner, build)
    size = SIZES[0]
    named = [word for word, meant in (words or {}).items() if meant == size and word in hints]
    for word in named or [size]:
        if word in hints and not allows_none(hints[word]):
            raise SpecError(f"{owner}: {word}: expected a fixed number of registers, got None.")


def _name(build: Callable[..., Any]) -> str:
    return getattr(build, "__name__", repr(build))
