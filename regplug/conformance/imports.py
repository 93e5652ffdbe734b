"""What a plugin costs those who only list it: nothing heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING

from regplug.conformance.check import Check, DoesNotApplyError
from regplug.discovery import discover
from regplug.errors import ConformanceError

if TYPE_CHECKING:
    from regplug.conformance.subject import Subject

TIME_LIMIT = 60  # seconds
HEAVY = "torch"
LIGHT_STATUS, HEAVY_STATUS = 70, 71  # the child's answers: a plugin prints, and exits with 0 or 1, as it likes
CHILD = f"""
import importlib, sys
count = int(sys.argv[1])
sys.path[:] = sys.argv[2 + count:]
for name in sys.argv[2:2 + count]:
    importlib.import_module(name)
sys.exit({HEAVY_STATUS} if {HEAVY!r} in sys.modules else {LIGHT_STATUS})
"""


def light_plugin(subject: Subject) -> None:
    """The modules that the plugin's ``regplug_v1`` entry points name import no torch, in a process of their own.

    They are imported to list strategies: one that brings torch makes every command of everybody two seconds slower.
    """
    provenance = subject.spec.entry.provenance
    found = discover().get(provenance.distribution) if provenance is not None else None
    if found is None:
        raise DoesNotApplyError("the readout is of no installed distribution")
    if not found.modules:
        raise DoesNotApplyError(f"{found.distribution} has entry points of readouts only, nothing is imported to list")
    if fault := fault_of(tuple(reference.partition(":")[0].strip() for reference in found.modules)):
        raise ConformanceError(f"plugin {found.distribution!r}: expected {', '.join(found.modules)} {fault}.")


@cache
def fault_of(modules: tuple[str, ...]) -> str:
    """What is wrong with these modules, once for all readouts of their plugin; empty for nothing."""
    command = [sys.executable, "-c", CHILD, str(len(modules)), *modules, *sys.path]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=TIME_LIMIT
        )
    except subprocess.TimeoutExpired:
        return f"to import within {TIME_LIMIT} s, got no end"
    if done.returncode == HEAVY_STATUS:
        return f"to import no {HEAVY}, got it; import it inside functions"
    if done.returncode != LIGHT_STATUS:
        return f"to import, got exit status {done.returncode}: {(done.stderr.splitlines() or ['no word'])[-1]}"
    return ""


CHECKS = (Check("light-plugin", light_plugin),)
