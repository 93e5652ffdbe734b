"""``python -m regplug.commands.doctor.child FOLDER``: imports one plugin, in a process that may hang or die.

``plugin`` starts it. It writes its results into files in the folder, because the plugin may print anything.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import regplug.registry.default
import regplug.registry.spec  # noqa: F401  # not used here: hosts have loaded them, and a plugin may change them
from regplug.commands.doctor.diagnostics import PROBLEM, WARNING, clip
from regplug.commands.doctor.monkeypatches import Snapshot, replaced, replaced_functions, snapshot, watched_functions
from regplug.commands.doctor.process_state import Change, ExitHooks, ProcessState
from regplug.errors import PluginError, one_line, shorten
from regplug.registry.distributions import normalise
from regplug.registry.entries import BackboneEntry, Entry, Provenance, ReadoutEntry
from regplug.registry.hookspecs import HOOKS
from regplug.registry.missing_package import missing_package, wants
from regplug.registry.references import import_plugin, resolve_reference
from regplug.registry.staging import stage

JOB, LIGHT, REFERENCES, AT, TRACE = "job.json", "light.json", "references.json", "at", "trace"
STARTED = "regplug doctor: started\n"  # printed first; anything before it is not from the plugin
MAX_FAULTS = 10  # shown of one plugin; the others are counted
# nouns for the entries of a hook, singular and plural
NOUNS = {
    "regplug_readouts": ("strategy", "strategies"),
    "regplug_films": ("FiLM generator", "FiLM generators"),
    "regplug_backbones": ("backbone", "backbones"),
    "regplug_export_backends": ("export backend", "export backends"),
}


@dataclass(frozen=True)
class Job:
    """The plugin to examine.

    Args:
        distribution: Its name.
        version: Its version.
        readouts: Names and references of its readouts.
        modules: References of its light modules.
        own: Top-level modules among its files.
        requires: Distributions that it requires, optional ones too.
        light_limit: Seconds for the import of its light modules.
        references_limit: Seconds for the import of what its entries name.
    """

    distribution: str
    version: str
    readouts: list[tuple[str, str]]
    modules: list[str]
    own: list[str]
    requires: list[str]
    light_limit: float
    references_limit: float

    @property
    def roots(self) -> set[str]:
        """Its top-level modules, from its files and references."""
        return {*self.own, *map(root_of, self.modules)}


@dataclass
class Fault:
    """A reason why references cannot be imported, and the entries that it concerns."""

    level: str
    entries: list[str]
    message: str


class TorchWatch:
    """An import finder that finds nothing, but notes who imports torch first."""

    def __init__(self, roots: Iterable[str]) -> None:
        self._roots = set(roots)
        self.where: str | None = None

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Called by the import system for every module that is not loaded yet."""
        if name == "torch" and self.where is None:
            frame = sys._getframe(1)
            places = []
            while frame is not None:
                module = str(frame.f_globals.get("__name__"))
                places.append((module, f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"))
                frame = frame.f_back  # type: ignore[assignment]
            own = [place for module, place in places if root_of(module) in self._roots]
            self.where = own[0] if own else "by another module"
        return None


class Surroundings:
    """The process as it is before an import, apart from regplug's own modules.

    Args:
        roots: The plugin's top-level modules.
    """

    def __init__(self, roots: Iterable[str]) -> None:
        self._functions: Snapshot = watched_functions()
        self._hooks = ExitHooks(set(roots))
        self._state = ProcessState()

    def changes(self) -> list[Change]:
        """What the import changed; restores what the rest of the examination needs."""
        self._hooks.stop()
        functions = replaced_functions(self._functions)
        found = [*self._state.changes(), *self._hooks.found]
        self._state.restore()
        return [Change(PROBLEM, f"replaces {shorten(functions)}"), *found] if functions else found


def main(folder: str) -> None:
    """Examine the plugin of the job in the folder, then exit without running its exit hooks."""
    exchange = Path(folder)
    raw = json.loads((exchange / JOB).read_text())
    job = Job(**{**raw, "readouts": [tuple(one) for one in raw["readouts"]]})
    pid = os.getpid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch = TorchWatch(job.roots)
    sys.meta_path.insert(0, watch)
    surroundings = Surroundings(job.roots)  # before the plugin's time begins, because it imports modules itself
    trace = (exchange / TRACE).open("w")
    faulthandler.enable(trace)
    os.write(1, STARTED.encode())
    os.write(2, STARTED.encode())

    faulthandler.dump_traceback_later(job.light_limit, exit=True, file=trace)  # it exits even if its parent is gone
    found, entries = light_phase(job, watch, surroundings)
    if os.getpid() != pid:  # the plugin forked, and this is the copy
        os._exit(0)
    faulthandler.dump_traceback_later(job.references_limit, exit=True, file=trace)
    _write(exchange / LIGHT, found)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # heavy modules may print
    os.dup2(nowhere, 2)
    if found["error"] is None:
        _write(exchange / REFERENCES, references_phase(job, entries, exchange / AT))
    os._exit(0)


def light_phase(
    job: Job, watch: TorchWatch, surroundings: Surroundings
) -> tuple[dict[str, Any], Mapping[str, tuple[Entry, ...]]]:
    """Import the plugin's light modules and call their hooks, as every host does."""
    before = snapshot()
    error = None
    entries: Mapping[str, tuple[Entry, ...]] = dict.fromkeys(HOOKS, ())
    begin = time.perf_counter()
    try:
        modules = [import_plugin(job.distribution, reference) for reference in job.modules]
        entries = stage(Provenance(job.distribution, job.version), job.readouts, modules)
    except BaseException as raised:  # one that is no Exception ends a host, which is worst
        error = _light_message(job, raised)
    seconds = time.perf_counter() - begin
    changes = surroundings.changes()
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not watch]
    return {
        "error": error,
        "seconds": seconds,
        "registered": {hook: [entry.name for entry in some] for hook, some in entries.items()},
        "torch": watch.where if "torch" in sys.modules else None,  # looking for its spec is no import
        "patched": replaced(before, job.roots - {"regplug"}),
        "changes": [(one.level, one.text) for one in changes],
    }, entries


def references_phase(job: Job, entries: Mapping[str, tuple[Entry, ...]], at: Path) -> dict[str, Any]:
    """Import what the entries name; the file ``at`` says which one is being imported."""
    surroundings = Surroundings(job.roots)
    before = snapshot()
    faults: dict[str, Fault] = {}
    for entry, reference in _references(entries):
        module = reference.partition(":")[0]
        if module in faults:
            faults[module].entries.append(entry)
            continue
        if module not in sys.modules:
            at.write_text(f"{entry}: importing {reference!r}")
        try:
            resolve_reference(reference)
        except BaseException as error:
            level, message = _classify(job, reference, error)
            # a module that cannot be imported is one fault for everything in it
            key = reference if module in sys.modules else module
            faults.setdefault(key, Fault(level, [], message)).entries.append(entry)
    ordered = sorted(faults.values(), key=lambda fault: fault.level != PROBLEM)
    changes = surroundings.changes()
    return {
        "faults": [_summary(fault) for fault in ordered[:MAX_FAULTS]],
        "more": [fault.level for fault in ordered[MAX_FAULTS:]],
        "patched": replaced(before, job.roots - {"regplug"}),
        "changes": [(one.level, one.text) for one in changes if not one.is_ordinary],
    }


def root_of(name: str) -> str:
    """The top-level module of a module or reference."""
    return name.partition(":")[0].partition(".")[0].strip()


def _references(entries: Mapping[str, tuple[Entry, ...]]) -> Iterable[tuple[str, str]]:
    """Each entry with each of its references. FiLM families are known by name and need not be installed."""
    for hook, some in entries.items():
        if hook == "regplug_films":
            continue
        for entry in some:
            references = [entry.build]
            if isinstance(entry, ReadoutEntry) and entry.cond_dim is not None:
                references.append(entry.cond_dim)
            if isinstance(entry, BackboneEntry):
                more = (entry.layout, entry.film_sites, entry.tokens, entry.describe, entry.weights, entry.preprocess)
                references += [reference for reference in more if reference is not None]
            for reference in references:
                if isinstance(reference, str):
                    yield f"{NOUNS[hook][0]} {entry.name!r}", reference


def _classify(job: Job, reference: str, error: BaseException) -> tuple[str, str]:
    # a missing module is a typo in the reference, unless it belongs to a distribution that the plugin requires
    named = root_of(reference)
    if package := missing_package(error, job.roots | ({named} if normalise(named) not in job.requires else set())):
        return WARNING, f"{wants(package)}."
    message = str(error) if isinstance(error, PluginError) else f"expected to import {reference!r}, got {error!r}."
    return PROBLEM, clip(message)


def _summary(fault: Fault) -> dict[str, str]:
    return {"level": fault.level, "message": f"{shorten([*dict.fromkeys(fault.entries)])}: {fault.message}"}


def _light_message(job: Job, error: BaseException) -> str:
    if not isinstance(error, PluginError):
        modules = ", ".join(map(repr, job.modules))
        owner = f"plugin {job.distribution!r}"
        return clip(f"{owner}: expected to import {modules}, got {type(error).__name__}: {one_line(error)}").rstrip(".")
    place = _place(error.__cause__.__traceback__ if error.__cause__ else None, job.roots)
    return clip(str(error).rstrip("."), 300) + (f" ({place})" if place else "")


def _place(traceback: TracebackType | None, roots: set[str]) -> str:
    """The innermost line in the plugin's own modules."""
    place = ""
    while traceback is not None:
        frame = traceback.tb_frame
        if root_of(str(frame.f_globals.get("__name__"))) in roots:
            place = f"{Path(frame.f_code.co_filename).name}, line {traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


def _write(path: Path, values: Mapping[str, Any]) -> None:
    unfinished = path.with_suffix(".writing")
    unfinished.write_text(json.dumps(values))
    unfinished.replace(path)


if __name__ == "__main__":
    main(sys.argv[1])
