"""The system calls of a writer are recorded, and the machine crashes after each: unsynced writes may be lost."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torture import Figure
from torture.bundles import in_memory, leftovers
from torture.disk import Disk, Recorder, Tree, crashes, materialise, moments, record
from torture.failing import Scenario, scenarios
from torture.tracing import calls_between_marks, traced

LOST, CORRUPT, UNDONE, LEFT = "old ones lost", "corrupt accepted", "reported, then lost", "left after the next write"
WHOLE_STRINGS = ("-xx", "-s", "10000000")


@dataclass(frozen=True)
class Recorded:
    """A write as the disk saw it."""

    scenario: Scenario
    disk: Disk


def recorded(scenario: Scenario, folder: Path, lazy: bool = False, after_a_kill: bool = False) -> Recorded:
    """Record a write; or one after a write that was killed when the new bundle was there, but not synced."""
    scenario.prepare(folder)
    recorder, log = Recorder(folder), folder.with_suffix(".log")
    arguments = [*scenario.arguments(folder), *(["--lazy"] if lazy else [])]
    if after_a_kill:
        spare = folder.with_name("spare")
        scenario.prepare(spare)
        traced(log, scenario.arguments(spare))
        last = [call for call in calls_between_marks(log) if call.name == "fsync"][-1]
        shutil.rmtree(spare)
        traced(log, arguments, *WHOLE_STRINGS, "-e", f"inject=fsync:signal=KILL:when={last.number}")
        record(recorder, log)
    done = traced(log, arguments, *WHOLE_STRINGS)
    if done.returncode:
        raise RuntimeError(f"{scenario.what}: expected a write that succeeds, got {done.stdout}{done.stderr}")
    record(recorder, log)
    shutil.rmtree(folder)
    return Recorded(scenario, recorder.disk)


def judge(scenario: Scenario, tree: Tree, folder: Path, reported: bool) -> list[str]:
    materialise(tree, folder)
    found = scenario.look(folder)
    bad = []
    if found == "mixture":
        bad.append(CORRUPT)
    elif found not in ("old", "new", "one of two"):
        bad.append(LOST)
    if reported and found != "new":
        bad.append(UNDONE)
    if not bad:
        scenario.again(folder)
        if scenario.look(folder) != "new" or leftovers(folder):
            bad.append(LEFT)
    shutil.rmtree(folder)
    return bad


def frozen(tree: Tree) -> tuple[object, ...]:
    """The tree as a key of a set."""
    return tuple((name, frozen(one) if isinstance(one, dict) else one) for name, one in sorted(tree.items()))


def crash_everywhere(one: Recorded, work: Path, share: float, seed: int, progress: Callable[[str], None]) -> Figure:
    draw = random.Random(seed)
    bad = Counter(dict.fromkeys((LOST, CORRUPT, UNDONE, LEFT), 0))
    seen = set()
    made = 0
    points = moments(one.disk)
    for calls in points:
        progress(f"{one.scenario.what}: call {calls} of {one.disk.calls}")
        reported = one.disk.success is not None and calls >= one.disk.success
        for tree in crashes(one.disk, calls, draw):
            made += 1
            key = reported, frozen(tree)
            if key not in seen and (share >= 1 or draw.random() < share):
                seen.add(key)
                bad.update(judge(one.scenario, tree, work / "crashed", reported))
    note = f"different states, of {made:,} after {one.disk.calls} calls"
    return Figure(one.scenario.what, len(seen), dict(bad), seed=seed, note=note)


def all_scenarios(work: Path) -> list[tuple[Scenario, bool]]:
    new, replaced, files, filled = scenarios(work)
    plain = [
        (replace(new, what="crashes in writing a new bundle"), False),
        (replace(replaced, what="crashes in replacing a bundle"), False),
        (replace(files, what="crashes in writing single files"), False),
        (replace(filled, what="crashes in filling an empty folder"), False),
    ]
    return [*plain, (replace(replaced, what="crashes in replacing one after a kill"), True)]


def run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]:
    with in_memory(work) as memory:
        return [
            crash_everywhere(recorded(scenario, memory / "p", after_a_kill=killed), memory, share, seed, progress)
            for scenario, killed in all_scenarios(memory)
        ]
