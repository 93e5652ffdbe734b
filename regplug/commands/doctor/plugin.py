"""Has one plugin imported in a child process, and says what became of it."""

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
from regplug.commands.doctor.child import AT, JOB, LIGHT, REFERENCES, STARTED, TRACE, WORDS, Job
from regplug.commands.doctor.findings import PROBLEM, WARNING, Finding, clip, shorten, worst
from regplug.registry.discovery import PROTOCOL, Found
from regplug.registry.distributions import normalise

START_LIMIT = 60.0  # seconds for Python and regplug, before the plugin's own time begins
REFERENCES_FACTOR = 12  # heavy modules may take so many times longer than light ones
GRACE = 3.0  # a child ends itself at its limit, and says where it hung


@dataclass
class Examination:
    """One plugin.

    Args:
        distribution: Its name.
        version: Its version.
        protocol: The protocol that is used, or the newest it speaks where none is; None if that cannot be read.
        import_seconds: How long its light modules and hooks took; None for one that was not imported.
        registered: Names by hook.
        findings: What is wrong.
        blocked: Whether ``REGPLUG_DISABLE`` names it.
    """

    distribution: str
    version: str
    protocol: int | None
    import_seconds: float | None = None
    registered: dict[str, list[str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    blocked: bool = False

    @property
    def status(self) -> str:
        """``blocked``, or the worst that was found."""
        return "blocked" if self.blocked else worst(finding.level for finding in self.findings)

    def find(self, level: str, message: str) -> None:
        """Add what is wrong."""
        self.findings.append(Finding(level, self.distribution, f"plugin {self.distribution!r}: {message}"))


def examine(found: Found, blocked: bool, time_limit: float, stop: Callable[[], bool]) -> Examination:
    """Examine one plugin.

    Args:
        found: Its entry points.
        blocked: Whether it may not be imported.
        time_limit: Seconds for its light modules; the modules that its entries name get twelve times as many.
        stop: Asked many times a second; what runs is ended when it says so.
    """
    name = found.distribution
    protocol = PROTOCOL if found.speaks_our_protocol else found.newest
    one = Examination(name, found.version, protocol, blocked=blocked)
    if blocked:
        return one
    if not found.speaks_our_protocol:  # what it means is not known here, so none of it is imported
        if found.newest:  # else its lines are at fault, which the look at all metadata tells with their place
            one.find(PROBLEM, found.refusal)
        return one
    job = _job(found, time_limit)
    with tempfile.TemporaryDirectory(prefix="regplug-doctor-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        (place / JOB).write_text(json.dumps(asdict(job)))
        ended = run_elsewhere(python_command("regplug.commands.doctor.child", folder), _Deadline(place, job, stop))
        _read_light(one, job, place, ended)
        _read_prints(one, ended)
    return one


class _Deadline:
    """Whether a child is later than the phase that it is in allows."""

    def __init__(self, place: Path, job: Job, stop: Callable[[], bool]) -> None:
        # the file that a phase begins with, and how long it may last; a plugin's time is its own, not a slow start's
        self._phases = [(TRACE, job.light_limit + GRACE), (LIGHT, job.references_limit + GRACE)]
        self._place = place
        self._stop = stop
        self._end = time.monotonic() + START_LIMIT

    def __call__(self) -> bool:
        if self._phases and (self._place / self._phases[0][0]).exists():
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
    """The top-level modules among a distribution's files; an editable one lists none."""
    try:
        files = metadata.files if metadata is not None else None
    except Exception:  # a damaged RECORD raises many things
        files = None
    tops = {
        file.parts[0] if len(file.parts) > 1 else file.stem for file in files or () if file.suffix in (".py", ".so")
    }
    return sorted(name for name in tops if name.isidentifier())


def _requirements(metadata: Distribution | None) -> list[str]:
    try:
        lines = (metadata.requires if metadata is not None else None) or []
    except Exception:  # metadata may be missing or no text
        lines = []
    matches = [re.match(r"[A-Za-z0-9._-]+", line) for line in lines]
    return sorted({normalise(match[0]) for match in matches if match})


def _read_light(one: Examination, job: Job, place: Path, ended: Ended) -> None:
    light = _read(place / LIGHT)
    until_then = f"update or remove it; until then, REGPLUG_DISABLE={one.distribution}"
    if light is None:
        if not (place / TRACE).exists():
            said = clip(ended.err.strip().rpartition("\n")[2])
            one.find(PROBLEM, f"could not be examined, for the child did not start: {said}")
        else:
            what = _how(place, ended, job.light_limit)
            one.find(PROBLEM, f"expected an import that returns, got {what}; {until_then}.")
        return
    one.import_seconds = light["seconds"]
    one.registered = light["registered"]
    if light["error"] is not None:
        told = clip(light["error"].removeprefix(f"plugin {one.distribution!r}: ")).rstrip(".")
        one.find(PROBLEM, f"{told}; {until_then}.")
    if light["torch"] is not None:
        one.find(
            PROBLEM,
            f"imports torch as it is listed ({light['torch']}), which makes every command slow; "
            "import it in the modules that entries name.",
        )
    _report_patches(one, light["patched"], "its import")
    _report_changes(one, light["changes"], "its import")
    if light["error"] is None:
        if not any(one.registered.values()):
            one.find(WARNING, "registers nothing; expected functions marked with @regplug.hookimpl in its module.")
        _read_references(one, job, place, ended)


def _read_references(one: Examination, job: Job, place: Path, ended: Ended) -> None:
    found = _read(place / REFERENCES)
    if found is None:
        at = clip((place / AT).read_text()) if (place / AT).exists() else "importing what its entries name"
        what = _how(place, ended, job.references_limit)
        one.find(PROBLEM, f"{at}: got {what}; what comes after it was not looked at.")
        return
    for fault in found["faults"]:
        one.find(fault["level"], fault["message"])
    if found["more"]:
        one.find(worst(found["more"]), f"{len(found['more']):,} more of its references cannot be imported.")
    _report_patches(one, found["patched"], "the import of what its entries name")
    _report_changes(one, found["changes"], "the import of what its entries name")


def _report_patches(one: Examination, patched: list[str], when: str) -> None:
    if patched:
        one.find(PROBLEM, f"{when} replaced {shorten(patched)}, for every plugin; remove it or ask its author.")


def _report_changes(one: Examination, changes: list[list[str]], when: str) -> None:
    for level, text in changes:
        one.find(level, f"{when} {clip(text)}, for the whole process; remove that or ask its author.")


def _read_prints(one: Examination, ended: Ended) -> None:
    if one.import_seconds is None:  # its last words are told with how it ended
        return
    # stdout is data: `regplug list --json` with a plugin's greeting in it is no JSON any more
    for stream, text, level in (("stdout", ended.out, PROBLEM), ("stderr", ended.err, WARNING)):
        printed = text.partition(STARTED)[2].strip()
        if printed:
            one.find(level, f"prints to {stream} at import: {clip(printed, 120)!r}.")


def _how(place: Path, ended: Ended, limit: float) -> str:
    """How a child ended that did not come to its end, and where."""
    trace = (place / TRACE).read_text(errors="replace") if (place / TRACE).exists() else ""
    where = _where(trace)
    if ended.code is None or trace.startswith("Timeout"):
        return f"no end within {limit:g} s{where}"
    said = clip(ended.err.partition(STARTED)[2].strip().rpartition("\n")[2], 120)
    return f"{format_exit(ended.code)}{where}" + (f", last words {said!r}" if said else "")


def _where(trace: str) -> str:
    """The innermost line of a faulthandler's traceback that is neither Python's nor ours."""
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
    """A hook's section, as ``regplug list`` calls it in JSON."""
    return WORDS[hook][1].lower().replace(" ", "_")
