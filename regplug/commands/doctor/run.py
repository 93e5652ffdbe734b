"""Finds what is wrong with the installed plugins and with regplug's environment; imports no plugin in this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from regplug.commands.doctor.child import NOUNS
from regplug.commands.doctor.diagnostics import MAX_SHOWN, PROBLEM, WARNING, Diagnostic, worst
from regplug.commands.doctor.environment import CHECKS, Requirement
from regplug.commands.doctor.metadata import check_metadata
from regplug.commands.doctor.plugin import PluginReport, examine_plugin
from regplug.commands.torch_guard import skip_unreadable_backends
from regplug.registry.discovery import discover
from regplug.registry.distributions import normalise
from regplug.registry.names import OWN


@dataclass(frozen=True)
class Report:
    """All that the doctor found.

    Args:
        plugins: Every plugin, sorted by distribution.
        diagnostics: Those that are about no single plugin.
        environment: What regplug needs.
    """

    plugins: list[PluginReport]
    diagnostics: list[Diagnostic]
    environment: list[Requirement]

    @property
    def all_diagnostics(self) -> list[Diagnostic]:
        """Plugin by plugin, then the others."""
        return [*(found for one in self.plugins for found in one.diagnostics), *self.diagnostics]

    @property
    def levels(self) -> list[str]:
        """The levels of all diagnostics and of the environment."""
        return [*(one.level for one in self.all_diagnostics), *(check.level for check in self.environment)]

    @property
    def level(self) -> str:
        """The worst of all."""
        return worst(self.levels)


def examine_all(time_limit: float, step: Callable[[str], None] = lambda step: None) -> Report:
    """Examine every installed plugin, each in its own child process, and what regplug needs.

    Args:
        time_limit: Seconds for the light modules of one plugin.
        step: Called with each thing that was examined.
    """
    skip_unreadable_backends()  # or the import of torch fails in every child, which is no fault of the plugin there
    found = discover()
    disabled = {normalise(one.strip()) for one in os.environ.get("REGPLUG_DISABLE", "").split(",")}
    stopping = threading.Event()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running_plugins = {
            pool.submit(examine_plugin, one, name in disabled, time_limit, stopping.is_set): f"plugin {name}"
            for name, one in found.items()
        }
        running_checks = {pool.submit(check, stopping.is_set): "environment" for check in CHECKS}
        names: dict[Future[Any], str] = {**running_plugins, **running_checks}
        try:
            for number, done in enumerate(as_completed(names), 1):
                step(f"{number} of {len(names)}, {names[done]}")
        except BaseException:  # an interrupt: do not wait for what still runs
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise
        plugins = [done.result() for done in running_plugins]
        environment = [done.result() for done in running_checks]
    return _report(plugins, environment)


def _report(plugins: list[PluginReport], environment: list[Requirement]) -> Report:
    known = {one.distribution: one for one in plugins}
    others: list[Diagnostic] = []
    if any(one.blocked and one.distribution == OWN for one in plugins):
        known[OWN].add(PROBLEM, "REGPLUG_DISABLE names it, which every other command refuses; take it out.")
    for found in (*check_metadata(), *_conflicts(plugins)):
        plugin = known.get(found.distribution or "")
        (plugin.diagnostics if plugin is not None else others).append(found)
    return Report([known[name] for name in sorted(known)], others, environment)


def _conflicts(plugins: Sequence[PluginReport]) -> Iterator[Diagnostic]:
    """Warnings about names that several plugins offer."""
    for hook, (word, words) in NOUNS.items():
        owners: dict[str, list[str]] = {}
        for one in plugins:
            for name in one.registered.get(hook, ()):
                owners.setdefault(name, []).append(one.distribution)
        shared = {name: tuple(some) for name, some in owners.items() if len(some) > 1}
        yield from _shared_names(word, words, shared)


def _shared_names(word: str, words: str, shared: dict[str, tuple[str, ...]]) -> Iterator[Diagnostic]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, owners in shared.items():
        groups.setdefault(owners, []).append(name)
    for owners, names in groups.items():
        for name in names[:MAX_SHOWN]:
            yield _conflict(word, name, owners)
        if names[MAX_SHOWN:]:
            some = f"{len(names) - MAX_SHOWN:,} more {words}"
            yield Diagnostic(WARNING, None, f"{some} are offered by {' and '.join(owners)}; use their full names.")


def _conflict(word: str, name: str, owners: tuple[str, ...]) -> Diagnostic:
    others = [owner for owner in owners if owner != OWN]
    full = " or ".join(repr(f"{owner}:{name}") for owner in others)
    if OWN in owners:
        by = " and ".join(others)
        message = f"{word} {name!r}: offered by {by} too, but the bare name stays regplug's own; use {full}."
    else:
        message = f"{word} {name!r}: offered by {' and '.join(others)}; use {full}."
    return Diagnostic(WARNING, others[0] if len(others) == 1 else None, message)
