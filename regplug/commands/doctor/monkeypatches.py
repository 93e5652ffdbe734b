"""Finds what a plugin replaced inside regplug and what it stands on, by comparing namespaces around its import."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection
from types import FunctionType, ModuleType

import regplug

# "regplug.registry.staging" or "regplug.registry.entries.Entry" -> name -> the object, and for a function its insides
Snapshot = dict[str, dict[str, tuple[object, ...]]]
# whose functions regplug and everybody else count on
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
    """The namespaces of the modules that are watched, whose functions and classes stay what they are."""
    for name in WATCHED:
        importlib.import_module(name)
    return _namespaces(WATCHED.__contains__)


def replaced_functions(before: Snapshot) -> list[str]:
    """What is no longer what it was among the functions and classes that are watched, as dotted names; puts it back."""
    now = _namespaces(WATCHED.__contains__)
    found = []
    for owner, inside in before.items():
        for word, old in inside.items():
            new = now.get(owner, {}).get(word)
            if callable(old[0]) and _differs(old, new):
                found.append(_name(owner, word, old, new))
                _put_back(owner, word, old)
    return sorted(set(found))


def _put_back(owner: str, word: str, old: tuple[object, ...]) -> None:
    """So that what is done next works; of a method, and of a module that was replaced whole, naming it is enough."""
    value = old[0]
    if isinstance(value, FunctionType):
        value.__code__, value.__defaults__, value.__kwdefaults__ = old[1:]  # type: ignore[assignment]
    module = sys.modules.get(owner)
    if module is not None:
        setattr(module, word, value)


def _namespaces(is_meant: Callable[[str], bool]) -> Snapshot:
    taken: Snapshot = {}
    for name, module in list(sys.modules.items()):
        if is_meant(name):
            namespace = dict(getattr(module, "__dict__", {}))
            taken[name] = {word: _fixed(value) for word, value in namespace.items()}
            for value in namespace.values():
                if isinstance(value, type) and value.__module__ == name:
                    inside = {word: _fixed(one) for word, one in vars(value).items()}
                    taken[f"{name}.{value.__qualname__}"] = inside
    return taken


def replaced(before: Snapshot, roots: Collection[str]) -> list[str]:
    """What is no longer what it was, as dotted names.

    Args:
        before: A snapshot from before.
        roots: Names of the plugin's top-level modules: in a module of regplug that was loaded since, what comes from
            one of these was put there.
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
    # of a replaced class, what is in it says nothing more
    return sorted(name for name in found if not any(name.startswith(f"{other}.") for other in found))


def _fixed(value: object) -> tuple[object, ...]:
    """What stays the same while nobody meddles; the objects themselves, so that no address is used twice."""
    if isinstance(value, FunctionType):
        return value, value.__code__, value.__defaults__, value.__kwdefaults__
    return (value,)


def _differs(old: tuple[object, ...], new: tuple[object, ...] | None) -> bool:
    if new is None:
        return True
    if old[0] is None:  # state of ours that waited for its first use
        return False
    return len(old) != len(new) or any(one is not other for one, other in zip(old, new, strict=True))


def _name(owner: str, word: str, old: tuple[object, ...], new: tuple[object, ...] | None) -> str:
    value = old[0]
    if new is not None and value is new[0] and isinstance(value, FunctionType):  # changed inside, wherever it is seen
        return f"{value.__module__}.{value.__qualname__}"
    return f"{owner}.{word}"


def _is_new(owner: str, word: str, value: object) -> bool:
    """Whether a name appeared that importing and first use do not make."""
    is_dunder = word.startswith("__") and word.endswith("__")
    is_door = owner == "regplug" and word in regplug.__all__
    return not (is_dunder or is_door or isinstance(value, ModuleType))


def _is_foreign(value: object, roots: Collection[str]) -> bool:
    home = getattr(value, "__module__", None) if isinstance(value, (FunctionType, type)) else None
    return isinstance(home, str) and home.partition(".")[0] in roots
