"""Turns what one distribution offers into checked entries, before a registry keeps any of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pluggy

from regplug.errors import MAX_MESSAGE, PluginError, class_name, clip, message_of
from regplug.registry import hookspecs
from regplug.registry.entries import Entry, Provenance, ReadoutEntry
from regplug.registry.hookspecs import HOOKS
from regplug.registry.untrusted_values import bounded, repr_of

MAX_ATTRIBUTES = 100_000  # of a module or object with hooks; pluggy reads each name


@dataclass(frozen=True)
class PluginRecord:
    """The state of one plugin: ``status`` is ``ok``, ``broken`` or ``blocked``; ``notes``: faults of its metadata."""

    distribution: str
    version: str
    status: str
    error: PluginError | None = None
    notes: tuple[str, ...] = ()


class PluginManager(pluggy.PluginManager):
    """pluggy's manager, but it reads only attributes with names that begin with ``regplug_``.

    With a thousand plugins, the others are a third of the time of a listing.
    """

    def __init__(self) -> None:
        super().__init__("regplug")
        self.add_hookspecs(hookspecs)

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        """As pluggy's, eight times faster on a module with many names."""
        return super().parse_hookimpl_opts(plugin, name) if name.startswith("regplug_") else None

    def parse_hookspec_opts(self, module_or_class: Any, name: str) -> pluggy.HookspecOpts | None:
        """As pluggy's, for the names that can be hooks."""
        return super().parse_hookspec_opts(module_or_class, name) if name.startswith("regplug_") else None


def stage(
    provenance: Provenance, readouts: Iterable[tuple[str, str]], plugins: Iterable[object]
) -> dict[str, tuple[Entry, ...]]:
    """Call a plugin's hooks and check all that they give.

    Args:
        provenance: The distribution; every entry is marked with it.
        readouts: Names and references of its ``regplug_readouts_v1`` entry points.
        plugins: Its modules or objects with hookimpls.

    Returns:
        The entries that each hook gave.

    Raises:
        PluginError: A hook is unknown, raises, exits, or gives what it should not; the cause is chained.
    """
    owner = f"plugin {provenance.distribution!r}"
    entries: dict[str, list[Entry]] = {hook: [] for hook in HOOKS}
    try:
        entries["regplug_readouts"] += [ReadoutEntry(name, build=reference) for name, reference in readouts]
        # two entry points may name one module, and pluggy accepts it only once
        if plugins := list({id(plugin): plugin for plugin in plugins}.values()):
            manager = PluginManager()
            for plugin in plugins:
                _refuse_endless(owner, plugin)
                manager.register(plugin)
            manager.check_pending()
            for hook, wanted in HOOKS.items():
                for implementation in getattr(manager.hook, hook).get_hookimpls():
                    entries[hook] += _checked(owner, hook, wanted, implementation.function())
        # a copy, which is checked again: a plugin may have changed it since
        marked = {
            hook: tuple(replace(entry, provenance=provenance) for entry in some) for hook, some in entries.items()
        }
        for hook, some in marked.items():
            _refuse_duplicates(owner, hook, some)
        return marked
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # any exception of a plugin, or a panic in Rust, must not take the host down
        if _is_ours(error):
            raise
        raise PluginError(
            f"{owner}: expected hooks that return entries, got {class_name(error)}: "
            f"{clip(message_of(error), MAX_MESSAGE)}"  # pluggy explains below its first line
        ) from error


def _is_ours(error: BaseException) -> bool:
    """Whether it is this module's own error: a plugin's subclass or message may raise when it is printed."""
    return type(error) is PluginError and all(type(argument) is str for argument in error.args)


def _refuse_endless(owner: str, plugin: object) -> None:
    names = type(plugin).__dir__(plugin)  # unsorted; a module's own __dir__ may give any iterable
    if len(list(islice(names, MAX_ATTRIBUTES + 1))) > MAX_ATTRIBUTES:
        raise PluginError(f"{owner}: expected at most {MAX_ATTRIBUTES} names in its module, got more.")


def _checked(owner: str, hook: str, wanted: type[Entry], result: object) -> list[Entry]:
    if isinstance(result, (str, bytes)) or not isinstance(result, Iterable):
        raise PluginError(f"{owner}: {hook}: expected a list of {wanted.__name__}, got {class_name(result)}.")
    entries: list[Entry] = bounded(result, f"{owner}: {hook}", PluginError)
    for entry in entries:
        if type(entry) is not wanted:
            raise PluginError(f"{owner}: {hook}: expected {wanted.__name__}, got {repr_of(entry)}.")
    return entries


def _refuse_duplicates(owner: str, hook: str, entries: Iterable[Entry]) -> None:
    names = Counter(name for entry in entries for name in (entry.name, *entry.old_names))
    for name, times in names.items():
        if times > 1:
            raise PluginError(f"{owner}: {hook}: expected each name once, got {name!r} {times} times.")
