"""Imports one plugin in a child process, and reports what happened."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from regplug.backends.child_process import Ended, format_exit, run_elsewhere
from regplug.backends.python_child import python_command
from regplug.commands.doctor.child import AT, JOB, LIGHT, NOUNS, REFERENCES, STARTED, TRACE, Job
from regplug.commands.doctor.diagnostics import PROBLEM, WARNING, Diagnostic, clip, worst
from regplug.errors import shorten
from regplug.registry.discovery import PROTOCOL, Found
from regplug.registry.distributions import normalise

START_LIMIT = 60.0  # seconds to start Python and regplug, before the plugin's own time begins
REFERENCES_FACTOR = 12  # heavy modules may take this many times longer than light ones
GRACE = 3.0  # seconds: a child ends itself at its limit, and says where it hung


@dataclass
class PluginReport:
    """What was found out about one plugin.

    Args:
        distribution: Its name.
        version: Its version.
        protocol: The protocol in use, or the newest that it supports if none is; None if that cannot be read.
        import_seconds: How long its light modules and hooks took; None if it was not imported.
        registered: Names by hook.
        diagnostics: What is wrong.
        blocked: Whether ``REGPLUG_DISABLE`` names it.
    """

    distribution: str
    version: str
    protocol: int | None
    import_seconds: float | None = None
    registered: dict[str, list[str]] = field(default_factory=dict)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    blocked: bool = False

    @property
    def status(self) -> str:
        """``blocked``, or the worst level of its diagnostics."""
        return "blocked" if self.blocked else worst(one.level for one in self.diagnostics)

    def add(self, level: str, text: str) -> None:
        """Add a diagnostic about the plugin."""
        self.diagnostics.append(Diagnostic(level, self.distribution, f"plugin {self.distribution!r}: {text}"))


def examine_plugin(found: Found, blocked: bool, time_limit: float, stop: Callable[[], bool]) -> PluginReport:
    """Examine one plugin.

    Args:
        found: Its entry points.
        blocked: Whether it may not be imported.
        time_limit: Seconds for its light modules; the modules that its entries name get twelve times as many.
        stop: Called many times a second; the child is ended when it returns True.
    """
    name = found.distribution
    protocol = PROTOCOL if found.speaks_our_protocol else found.newest
    report = PluginReport(name, found.version, protocol, blocked=blocked)
    if blocked:
        return report
    if not found.speaks_our_protocol:  # its meaning is unknown here, so nothing of it is imported
        if found.newest:  # else its lines are wrong, which check_metadata reports with the file
            report.add(PROBLEM, found.refusal)
        return report
    job = _job(found, time_limit)
    with tempfile.TemporaryDirectory(prefix="regplug-doctor-", ignore_cleanup_errors=True) as folder:
        exchange = Path(folder)
        (exchange / JOB).write_text(json.dumps(asdict(job)))
        ended = run_elsewhere(python_command("regplug.commands.doctor.child", folder), _Deadline(exchange, job, stop))
        _read_light(report, job, exchange, ended)
        _read_prints(report, ended)
    return report


class _Deadline:
    """Whether a child has exceeded the time of the phase that it is in."""

    def __init__(self, exchange: Path, job: Job, stop: Callable[[], bool]) -> None:
        # the file whose creation begins a phase, and how long it may last; a slow start does not use up a plugin's time
        self._phases = [(TRACE, job.light_limit + GRACE), (LIGHT, job.references_limit + GRACE)]
        self._exchange = exchange
        self._stop = stop
        self._end = time.monotonic() + START_LIMIT

    def __call__(self) -> bool:
        if self._phases and (self._exchange / self._phases[0][0]).exists():
            self._end = time.monotonic() + self._phases.pop(0)[1]
        return self._stop() or time.monotonic() > self._end


def _job(found: Found, time_limit: float) -> Job:
    return Job(
        found.distribution,
        found.version,
        found.readouts,
        found.modules,
        own=_own_modules(found.metadata),
        requires=_requirements(found.metadata),
        light_limit=time_limit,
        references_limit=REFERENCES_FACTOR * time_limit,
    )


def _own_modules(metadata: Distribution | None) -> list[str]:
    """The top-level modules among a distribution's files; an editable installation lists none."""
    try:
        files = metadata.files if metadata is not None else None
    except Exception:  # a damaged RECORD raises many kinds of error
        files = None
    tops = {
        file.parts[0] if len(file.parts) > 1 else file.stem for file in files or () if file.suffix in (".py", ".so")
    }
    return sorted(name for name in tops if name.isidentifier())


def _requirements(metadata: Distribution | None) -> list[str]:
    try:
        lines = (metadata.requires if metadata is not None else None) or []
    except Exception:  # metadata may be missing, or not be text
        lines = []
    matches = [re.match(r"[A-Za-z0-9._-]+", line) for line in lines]
    return sorted({normalise(match[0]) for match in matches if match})


def _read_light(report: PluginReport, job: Job, exchange: Path, ended: Ended) -> None:
    light = _read(exchange / LIGHT)
    until_then = f"update or remove it; until then, REGPLUG_DISABLE={report.distribution}"
    if light is None:
        if not (exchange / TRACE).exists():
            last_line = clip(ended.err.strip().rpartition("\n")[2])
            report.add(PROBLEM, f"could not be examined, because the child process did not start: {last_line}")
        else:
            end = _format_end(exchange, ended, job.light_limit)
            report.add(PROBLEM, f"expected an import that returns, got {end}; {until_then}.")
        return
    report.import_seconds = light["seconds"]
    report.registered = light["registered"]
    if light["error"] is not None:
        report.diagnostics.append(Diagnostic(PROBLEM, report.distribution, f"{light['error']}; {until_then}."))
    if light["torch"] is not None:
        report.add(
            PROBLEM,
            f"imports torch as it is listed ({light['torch']}), which makes every command slow; "
            "import it in the modules that entries name.",
        )
    _report_patches(report, light["patched"], "its import")
    _report_changes(report, light["changes"], "its import")
    if light["error"] is None:
        if not any(report.registered.values()):
            report.add(WARNING, "registers nothing; expected functions marked with @regplug.hookimpl in its module.")
        _read_references(report, job, exchange, ended)


def _read_references(report: PluginReport, job: Job, exchange: Path, ended: Ended) -> None:
    found = _read(exchange / REFERENCES)
    if found is None:
        at = clip((exchange / AT).read_text()) if (exchange / AT).exists() else "importing what its entries name"
        end = _format_end(exchange, ended, job.references_limit)
        report.add(PROBLEM, f"{at}: got {end}; what comes after it was not looked at.")
        return
    for fault in found["faults"]:
        report.add(fault["level"], fault["message"])
    if found["more"]:
        report.add(worst(found["more"]), f"{len(found['more']):,} more of its references cannot be imported.")
    _report_patches(report, found["patched"], "the import of what its entries name")
    _report_changes(report, found["changes"], "the import of what its entries name")


def _report_patches(report: PluginReport, patched: list[str], when: str) -> None:
    if patched:
        report.add(PROBLEM, f"{when} replaced {shorten(patched)}, for every plugin; remove it or ask its author.")


def _report_changes(report: PluginReport, changes: list[list[str]], when: str) -> None:
    for level, text in changes:
        report.add(level, f"{when} {clip(text)}, for the whole process; remove that or ask its author.")


def _read_prints(report: PluginReport, ended: Ended) -> None:
    if report.import_seconds is None:  # what it printed last is reported with how it ended
        return
    # stdout is data: `regplug list --json` with a plugin's greeting in it is not JSON
    for stream, text, level in (("stdout", ended.out, PROBLEM), ("stderr", ended.err, WARNING)):
        printed = text.partition(STARTED)[2].strip()
        if printed:
            report.add(level, f"prints to {stream} at import: {clip(printed, 120)!r}.")


def _format_end(exchange: Path, ended: Ended, limit: float) -> str:
    """How and where a child ended that did not finish its work."""
    trace = (exchange / TRACE).read_text(errors="replace") if (exchange / TRACE).exists() else ""
    place = _place(trace)
    if ended.code is None or trace.startswith("Timeout"):
        return f"no end within {limit:g} s{place}"
    last_line = clip(ended.err.partition(STARTED)[2].strip().rpartition("\n")[2], 120)
    return f"{format_exit(ended.code)}{place}" + (f", last line {last_line!r}" if last_line else "")


def _place(trace: str) -> str:
    """The innermost line of a faulthandler traceback that is neither Python's nor regplug's."""
    own = str(Path(__file__).parents[2]) + os.sep
    for path, line in re.findall(r'^  File "(.+)", line (\d+) in ', trace, re.MULTILINE):
        is_pythons = path.startswith((os.path.dirname(os.__file__) + os.sep, "<")) and "site-packages" not in path  # noqa: PTH120
        if not is_pythons and not path.startswith(own):
            return f" ({Path(path).name}, line {line})"
    return ""


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return None


def section_of(hook: str) -> str:
    """The name of a hook's section in the JSON of ``regplug list``."""
    return NOUNS[hook][1].lower().replace(" ", "_")
