"""Each system call that a writer makes on files fails in turn, is interrupted, and is the last before a kill."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from regplug.format.folder import MANIFEST
from regplug.format.single_file import write_files
from regplug.format.write_bundle import write_folder
from torture import Figure
from torture.bundles import USER_FILES, in_memory, leftovers, make_bundle, version_at, write_plainly
from torture.tracing import Call, calls_between_marks, traced

WAYS = {
    "no space": "error=ENOSPC",
    "I/O error": "error=EIO",
    "interrupted": "signal=INT",
    "killed": "signal=KILL",
}
SHOWN = {"interrupted": "--- SIGINT", "killed": "+++ killed by SIGKILL"}  # in the log of strace
LOST, CORRUPT, TRACEBACKS = "old ones lost", "corrupt accepted", "tracebacks"
UNTRUE, LEFT, MISSED = "untrue messages", "left after the next write", "calls missed"
BAD = (LOST, CORRUPT, TRACEBACKS, UNTRUE, LEFT, MISSED)


@dataclass(frozen=True)
class Scenario:
    """What is written, and over what.

    Args:
        what: The row of the table.
        arguments: Of the writing process, for a folder.
        prepare: Makes the folder as it is before.
        look: Gives "old", "new", or what else is there.
        again: Writes once more.
    """

    what: str
    arguments: Callable[[Path], list[object]]
    prepare: Callable[[Path], None]
    look: Callable[[Path], str]
    again: Callable[[Path], None]


def scenarios(work: Path) -> list[Scenario]:
    old, new = make_bundle(work / "old", 0), make_bundle(work / "new", 1)
    write_plainly(work / "files", {"one": b"new one" * 999, "two": b"new two" * 999})
    files = {file.name: file.read_bytes() for file in (work / "files").iterdir()}

    def look_at_files(folder: Path) -> str:
        found = {name: (folder / name).read_bytes() if (folder / name).exists() else None for name in files}
        allowed = {"one": (b"old one", files["one"]), "two": (None, files["two"])}
        if any(found[name] not in allowed[name] for name in files):
            return "lost"
        return "old" if found == {"one": b"old one", "two": None} else "new" if found == files else "one of two"

    def look_at_new(folder: Path) -> str:
        found = version_at(folder / "in" / "b", {"new": new})
        return "old" if found == "nothing" else found

    def look_at_filled(place: Path) -> str:
        is_bundle = (place / MANIFEST).exists()  # without a manifest the files there are no bundle
        return version_at(place, {"new": new}) if is_bundle or not place.exists() else "old"

    return [
        Scenario(
            "calls of a new bundle",
            lambda folder: ["folder", folder / "in" / "b", work / "new"],
            lambda folder: folder.mkdir(),
            look_at_new,
            lambda folder: write_folder(folder / "in" / "b", new, force=True),
        ),
        Scenario(
            "calls of a replaced bundle",
            lambda folder: ["folder", folder / "b", work / "new"],
            lambda folder: write_plainly(folder / "b", old | USER_FILES),
            lambda folder: version_at(folder / "b", {"old": old | USER_FILES, "new": new | USER_FILES}),
            lambda folder: write_folder(folder / "b", new, force=True),
        ),
        Scenario(
            "calls of two single files",
            lambda folder: ["files", folder, work / "files"],
            lambda folder: write_plainly(folder, {"one": b"old one"}),
            look_at_files,
            lambda folder: write_files({folder / name: data for name, data in files.items()}, force=True),
        ),
        Scenario(
            "calls of a filled folder",
            lambda folder: ["folder", folder / "b", work / "new"],
            lambda folder: (folder / "b").mkdir(parents=True),
            lambda folder: look_at_filled(folder / "b"),
            lambda folder: write_folder(folder / "b", new, force=True),
        ),
    ]


def one(scenario: Scenario, folder: Path, expected: list[Call], index: int, way: str, lazy: bool = False) -> list[str]:
    """Fail one call; gives what happened that must not."""
    scenario.prepare(folder)
    call, log = expected[index], folder.with_suffix(".log")
    more = ["--lazy"] if lazy else []
    done = traced(log, [*scenario.arguments(folder), *more], "-e", f"inject={call.name}:{WAYS[way]}:when={call.number}")
    seen = calls_between_marks(log)
    found = scenario.look(folder)
    bad = []
    hit = seen[index] if index < len(seen) else None
    if hit is None or hit.name != call.name or SHOWN.get(way, "(INJECTED)") not in log.read_text():
        bad.append(MISSED)
    if found == "mixture":
        bad.append(CORRUPT)
    elif found not in ("old", "new", "one of two"):
        bad.append(LOST)
    if way != "killed":
        bad += judge_message(done.returncode, done.stdout, done.stderr, found)
    scenario.again(folder)
    if scenario.look(folder) != "new" or leftovers(folder):
        bad.append(LEFT)
    shutil.rmtree(folder)
    log.unlink()
    return bad


def judge_message(code: int, out: str, err: str, found: str) -> list[str]:
    if err or code not in (0, 1, 130) or out.count("\n") != 1:
        return [TRACEBACKS]
    if code == 0:
        true = out == "ok\n" and found == "new"
    elif code == 130:
        true = out == "interrupted\n"
    else:
        true = out.startswith(("bundle ", "file ")) and (found == "old" or "nothing was changed" not in out)
    return [] if true else [UNTRUE]


def run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]:
    with in_memory(work) as memory:
        return [fail_calls(scenario, memory, share, seed, progress) for scenario in scenarios(memory)]


def fail_calls(
    scenario: Scenario, work: Path, share: float, seed: int, progress: Callable[[str], None], lazy: bool = False
) -> Figure:
    expected = record(scenario, work / "recorded", lazy)
    tries = [(index, way) for index in range(len(expected)) for way in WAYS]
    if share < 1:
        tries = random.Random(seed).sample(tries, max(12, round(share * len(tries))))
    bad = Counter(dict.fromkeys(BAD, 0))

    def attempt(number: int) -> list[str]:
        progress(f"{scenario.what}: {number} of {len(tries)}")
        index, way = tries[number]
        return one(scenario, work / f"try-{number}", expected, index, way, lazy)

    with ThreadPoolExecutor(2) as pool:
        for outcome in pool.map(attempt, range(len(tries))):
            bad.update(outcome)
    note = f"{len(expected)} calls, each refused twice, interrupted and killed at"
    return Figure(scenario.what, len(tries), dict(bad), seed=seed if share < 1 else None, note=note)


def record(scenario: Scenario, folder: Path, lazy: bool = False) -> list[Call]:
    """The calls of a write that succeeds."""
    scenario.prepare(folder)
    log = folder.with_suffix(".log")
    done = traced(log, [*scenario.arguments(folder), *(["--lazy"] if lazy else [])])
    if done.returncode or scenario.look(folder) != "new":
        raise RuntimeError(f"{scenario.what}: expected a write that succeeds, got {done.stdout}{done.stderr}")
    calls = calls_between_marks(log)[:-1]
    shutil.rmtree(folder)
    return calls
