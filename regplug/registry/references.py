"""References: ``"module:attr"`` as plugins and users write it, and importing what it names."""

from __future__ import annotations

import pkgutil
import re
import sys
from collections.abc import Callable
from typing import Any

from regplug.errors import MAX_MESSAGE, PluginError, SpecError, class_name, clip, one_line
from regplug.registry.process_guard import guard_process
from regplug.registry.untrusted_values import repr_of

REFERENCE_PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

# "module:attr", or the object itself in a plugin of the running program
Reference = str | Callable[..., Any]


def check_reference(owner: str, word: str, reference: object) -> None:
    """Raise a SpecError for what is neither ``"module:attr"`` nor callable."""
    if isinstance(reference, str) and REFERENCE_PATTERN.fullmatch(reference):
        return
    if isinstance(reference, str) or not callable(reference):
        raise SpecError(f"{owner}: {word}: expected 'module:attr' or a callable, got {repr_of(reference)}.")


def load_reference(owner: str, reference: Reference) -> Callable[..., Any]:
    """Import what ``reference`` names, and undo what that does to the process (``guard_process``).

    Raises:
        PluginError: The module cannot be imported or has no such attribute; the cause is chained.
    """
    with guard_process():
        return import_reference(owner, reference)


def import_reference(owner: str, reference: Reference) -> Callable[..., Any]:
    """As ``load_reference``, but what the import does to the process is not undone."""
    try:
        return resolve_reference(reference)
    except PluginError as error:
        raise PluginError(f"{owner}: {error.args[0]}") from error.__cause__


def resolve_reference(reference: Reference) -> Callable[..., Any]:
    """As ``import_reference``, with a message that begins with ``expected`` and names no owner."""
    if not isinstance(reference, str):
        return reference
    try:
        target: object = pkgutil.resolve_name(reference)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # exit() in a plugin, or a panic in Rust, must not end the host
        raise PluginError(
            f"expected to import {reference!r}, got {class_name(error)}: {clip(one_line(error), MAX_MESSAGE)}."
        ) from error
    if not callable(target):
        raise PluginError(f"expected a callable at {reference!r}, got {class_name(target)}.")
    return target


def reference_of(target: Reference) -> str:
    """``"module:attr"`` of a class or function, or of a reference."""
    return target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"


def import_named_by_user(word: str, reference: str) -> Callable[..., Any]:
    """Import what a user's ``module:attr`` names; the working folder is searched last.

    Args:
        word: The option or argument, for messages.
        reference: ``module:attr``.

    Raises:
        SpecError: It cannot be imported.
    """
    check_reference(word, "value", reference)
    if "" not in sys.path:
        sys.path.append("")  # last, so that a file there cannot replace an installed module
    try:
        return load_reference(word, reference)
    except PluginError as error:  # not a fault of a plugin: the user named it
        raise SpecError(str(error)) from error


def import_plugin(distribution: str, reference: str) -> object:
    """Import the module, or the object inside it, that a ``regplug_v1`` entry point names.

    Raises:
        PluginError: It cannot be imported; the cause is chained.
    """
    module, _, attribute = (part.strip() for part in reference.partition(":"))
    try:
        return pkgutil.resolve_name(f"{module}:{attribute}")  # "module:" is the module itself
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit would end the host silently, with success
        raise PluginError(
            f"plugin {distribution!r}: expected to import {reference!r}, got {class_name(error)}: "
            f"{clip(one_line(error), MAX_MESSAGE)}"
        ) from error
