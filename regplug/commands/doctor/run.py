"""Finds what is wrong with the installed plugins and with what regplug stands on; imports no plugin itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from regplug.commands.doctor.child import WORDS
from regplug.commands.doctor.environment import CHECKS, Requirement
from regplug.commands.doctor.findings import PROBLEM, SHOWN, WARNING, Finding, worst
from regplug.commands.doctor.metadata import check_metadata
from regplug.commands.doctor.plugin import Examination, examine
from regplug.commands.torch_guard import skip_unreadable_backends
from regplug.registry.discovery import discover
from regplug.registry.distributions import normalise
from regplug.registry.names import OWN


@dataclass(frozen=True)
class Diagnosis:
    """All that the doctor found.

    Args:
        plugins: Every plugin, sorted by distribution.
        findings: What belongs to no single plugin.
        environment: What regplug stands on.
    """

    plugins: list[Examination]
    findings: list[Finding]
    environment: list[Requirement]

    @property
    def all_findings(self) -> list[Finding]:
        """Plugin by plugin, then the others."""
        return [*(finding for one in self.plugins for finding in one.findings), *self.findings]

    @property
    def levels(self) -> list[str]:
        """The level of all that was found, in the plugins and below them."""
        return [*(one.level for one in self.all_findings), *(check.level for check in self.environment)]

    @property
    def level(self) -> str:
        """The worst of all."""
        return worst(self.levels)


def diagnose(time_limit: float, step: Callable[[str], None] = lambda step: None) -> Diagnosis:
    """Examine every installed plugin, each in a child process of its own, and what regplug stands on.

    Args:
        time_limit: Seconds for the light modules of one plugin.
        step: Told what was done, as it is done.
    """
    skip_unreadable_backends()  # or the import of torch fails in every child, which is no fault of the plugin there
    found = discover()
    disabled = {normalise(one.strip()) for one in os.environ.get("REGPLUG_DISABLE", "").split(",")}
    stopping = threading.Event()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        examinations = {
            pool.submit(examine, one, one.distribution in disabled, time_limit, stopping.is_set): f"plugin {name}"
            for name, one in found.items()
        }
        checks = {pool.submit(check, stopping.is_set): "environment" for check in CHECKS}
        names: dict[Future[Any], str] = {**examinations, **checks}
        try:
            for number, done in enumerate(as_completed(names), 1):
                step(f"{number} of {len(names)}, {names[done]}")
        except BaseException:  # an interrupt: what still runs would hold us up
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise
        plugins = [done.result() for done in examinations]
        environment = [done.result() for done in checks]
    return _diagnosis(plugins, environment)


def _diagnosis(plugins: list[Examination], environment: list[Requirement]) -> Diagnosis:
    findings = check_metadata()
    known = {one.distribution: one for one in plugins}
    rest: list[Finding] = []
    if any(one.blocked and one.distribution == OWN for one in plugins):
        known[OWN].find(PROBLEM, "REGPLUG_DISABLE names it, which every other command refuses; take it out.")
    for finding in (*findings, *_conflicts(plugins)):
        owner = known.get(finding.distribution or "")
        (owner.findings if owner is not None else rest).append(finding)
    return Diagnosis([known[name] for name in sorted(known)], rest, environment)


def _conflicts(plugins: Sequence[Examination]) -> Iterator[Finding]:
    """Names that two plugins offer."""
    for hook, (word, words) in WORDS.items():
        owners: dict[str, list[str]] = {}
        for one in plugins:
            for name in one.registered.get(hook, ()):
                owners.setdefault(name, []).append(one.distribution)
        shared = {name: tuple(some) for name, some in owners.items() if len(some) > 1}
        yield from _bounded(word, words, shared)


def _bounded(word: str, words: str, shared: dict[str, tuple[str, ...]]) -> Iterator[Finding]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, owners in shared.items():
        groups.setdefault(owners, []).append(name)
    for owners, names in groups.items():
        for name in names[:SHOWN]:
            yield _conflict(word, name, owners)
        if names[SHOWN:]:
            some = f"{len(names) - SHOWN:,} more {words}"
            yield Finding(WARNING, None, f"{some} are offered by {' and '.join(owners)}; use their full names.")


def _conflict(word: str, name: str, owners: tuple[str, ...]) -> Finding:
    others = [owner for owner in owners if owner != OWN]
    full = " or ".join(repr(f"{owner}:{name}") for owner in others)
    if OWN in owners:
        by = " and ".join(others)
        message = f"{word} {name!r}: offered by {by} too, but the bare name stays regplug's own; use {full}."
    else:
        message = f"{word} {name!r}: offered by {' and '.join(others)}; use {full}."
    return Finding(WARNING, others[0] if len(others) == 1 else None, message)
