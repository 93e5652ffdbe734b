"""Finds what a plugin replaced inside regplug and inside modules that regplug needs, by comparing namespaces."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection
from types import FunctionType, ModuleType

import regplug
from regplug.registry.old_modules import NEW_PATHS

# "regplug.registry.staging" or "regplug.registry.entries.Entry" -> name -> the object, and for a function its insides
Snapshot = dict[str, dict[str, tuple[object, ...]]]
# modules whose functions regplug and other programs rely on
WATCHED = frozenset(
    {
        *("builtins", "hashlib", "io", "os", "pathlib", "pickle", "posixpath", "shutil", "socket", "struct"),
        *("importlib", "importlib.metadata", "json", "json.decoder", "json.encoder", "subprocess", "tempfile"),
        *("threading", "zipfile", "click", "click.core", "pluggy", "pluggy._hooks", "pluggy._manager"),
    }
)


def snapshot() -> Snapshot:
    """The namespaces of regplug's loaded modules and of their classes."""
    return _namespaces(lambda name: name == "regplug" or name.startswith("regplug."))


def watched_functions() -> Snapshot:
    """The namespaces of the watched modules."""
    for name in WATCHED:
        importlib.import_module(name)
    return _namespaces(WATCHED.__contains__)


def replaced_functions(before: Snapshot) -> list[str]:
    """Dotted names of the watched functions and classes that were replaced; restores them."""
    now = _namespaces(WATCHED.__contains__)
    found = []
    for owner, inside in before.items():
        for word, old in inside.items():
            new = now.get(owner, {}).get(word)
            if callable(old[0]) and _differs(old, new):
                found.append(_name(owner, word, old, new))
                _restore(owner, word, old)
    return sorted(set(found))


def _restore(owner: str, word: str, old: tuple[object, ...]) -> None:
    """Restore a function or class of a module, because the next steps need it; a method is only reported."""
    value = old[0]
    if isinstance(value, FunctionType):
        value.__code__, value.__defaults__, value.__kwdefaults__ = old[1:]  # type: ignore[assignment]
    module = sys.modules.get(owner)
    if module is not None:
        setattr(module, word, value)


def _namespaces(is_wanted: Callable[[str], bool]) -> Snapshot:
    taken: Snapshot = {}
    for name, module in list(sys.modules.items()):
        if is_wanted(name) and name not in NEW_PATHS:  # an old path is the same module once more
            namespace = dict(getattr(module, "__dict__", {}))
            taken[name] = {word: _identity(value) for word, value in namespace.items()}
            for value in namespace.values():
                if isinstance(value, type) and value.__module__ == name:
                    inside = {word: _identity(one) for word, one in vars(value).items()}
                    taken[f"{name}.{value.__qualname__}"] = inside
    return taken


def replaced(before: Snapshot, roots: Collection[str]) -> list[str]:
    """Dotted names of what was replaced inside regplug.

    Args:
        before: A snapshot from before.
        roots: The plugin's top-level modules: an object of one of these in a module of regplug was put there.
    """
    now = snapshot()
    found = {owner for owner in before if owner not in now}
    for owner, inside in now.items():
        known = before.get(owner, {})
        found |= {
            _name(owner, word, known[word], inside.get(word))
            for word in known
            if _differs(known[word], inside.get(word))
        }
        for word in inside.keys() - known.keys():
            if _is_foreign(inside[word][0], roots) or (owner in before and _is_new(owner, word, inside[word][0])):
                found.add(f"{owner}.{word}")
    # a replaced class is enough, without its attributes
    return sorted(name for name in found if not any(name.startswith(f"{other}.") for other in found))


def _identity(value: object) -> tuple[object, ...]:
    """The objects that stay the same unless someone replaces them or, for a function, its insides."""
    if isinstance(value, FunctionType):
        return value, value.__code__, value.__defaults__, value.__kwdefaults__
    return (value,)


def _differs(old: tuple[object, ...], new: tuple[object, ...] | None) -> bool:
    if new is None:
        return True
    if old[0] is None:  # our own state, set at first use
        return False
    return len(old) != len(new) or any(one is not other for one, other in zip(old, new, strict=True))


def _name(owner: str, word: str, old: tuple[object, ...], new: tuple[object, ...] | None) -> str:
    value = old[0]
    # changed inside: name it where it is defined
    if new is not None and value is new[0] and isinstance(value, FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return f"{owner}.{word}"


def _is_new(owner: str, word: str, value: object) -> bool:
    """Whether a name appeared that importing and first use do not make."""
    is_dunder = word.startswith("__") and word.endswith("__")
    is_public = owner == "regplug" and word in regplug.__all__
    return not (is_dunder or is_public or isinstance(value, ModuleType))


def _is_foreign(value: object, roots: Collection[str]) -> bool:
    home = getattr(value, "__module__", None) if isinstance(value, (FunctionType, type)) else None
    return isinstance(home, str) and home.partition(".")[0] in roots
