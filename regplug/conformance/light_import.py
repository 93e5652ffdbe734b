"""Listing a plugin imports nothing heavy."""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

from regplug.backends.child_process import format_exit, run_elsewhere, until
from regplug.backends.python_child import python_code
from regplug.conformance.check import AnySubject, Check, DoesNotApplyError
from regplug.errors import ConformanceError
from regplug.registry.discovery import discover
from regplug.registry.entries import Entry

TIME_LIMIT = 60  # seconds
HEAVY = "torch"
LIGHT_STATUS, HEAVY_STATUS = 70, 71  # the child's answers; a plugin itself may print, and exit with 0 or 1
CHILD = f"""
import importlib, os, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
os._exit({HEAVY_STATUS} if {HEAVY!r} in sys.modules else {LIGHT_STATUS})  # threads and exit hooks are not waited for
"""


class SubjectWithEntry(AnySubject, Protocol):
    """A subject that is registered by an entry."""

    @property
    def entry(self) -> Entry:
        """The entry."""


def light_plugin(subject: SubjectWithEntry) -> None:
    """The modules that the plugin's ``regplug_v1`` entry points name import no torch, in a new process.

    They are imported to list strategies: one that imports torch makes every command two seconds slower, for every user.
    """
    provenance = subject.entry.provenance
    found = discover().get(provenance.distribution) if provenance is not None else None
    if found is None:
        raise DoesNotApplyError("it is of no installed distribution")
    if not found.modules:
        raise DoesNotApplyError(f"{found.distribution} has entry points of readouts only, nothing is imported to list")
    if fault := import_fault(tuple(reference.partition(":")[0].strip() for reference in found.modules)):
        raise ConformanceError(f"plugin {found.distribution!r}: expected {', '.join(found.modules)} {fault}.")


@cache
def import_fault(modules: tuple[str, ...]) -> str:
    """What is wrong with the import of these modules, found once per plugin; empty if nothing is."""
    ended = run_elsewhere(python_code(CHILD, *modules), until(TIME_LIMIT))
    if ended.code is None:
        return f"to import within {TIME_LIMIT} s, got no end"
    if ended.code == HEAVY_STATUS:
        return f"to import no {HEAVY}, got it; import it inside functions"
    if ended.code != LIGHT_STATUS:
        return f"to import, got {format_exit(ended.code)}: {(ended.err.splitlines() or ['no message'])[-1]}"
    return ""


CHECKS: tuple[Check[Any], ...] = (Check("light-plugin", light_plugin),)
