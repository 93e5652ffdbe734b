"""``regplug run`` while a worker, or the run itself, is killed at random moments: no row is lost or written twice."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from support.commands import run_command
from support.real_runs import Run, done_in, faults_of, run_to_end, started, wait_for, write_inputs
from support.token_files import D, R

import regplug
from torture import Figure

TIMES = 10  # of each kind
FILES, WORKERS = 40, 2
LONGEST_S = 0.05  # between two of the moments that the journal shows
LEFT_S = 2.0
CODES, WRONG, INCOMPLETE, LEFT = "wrong exit codes", "wrong results", "incomplete by --status", "workers left"
BAD = (CODES, WRONG, INCOMPLETE, LEFT)


def bundle_in(folder: Path) -> Path:
    torch.manual_seed(0)
    spec = regplug.resolve("pool", num_registers=R, hidden_dim=D)
    regplug.export(spec, spec.build(), folder, backends=())
    return folder


class Place:
    """Inputs, a bundle and the results of a run that nothing disturbed."""

    def __init__(self, work: Path) -> None:
        self.bundle, self.inputs = bundle_in(work / "bundle"), write_inputs(work / "in", FILES)
        self.undisturbed, self.output = work / "undisturbed", work / "out"
        if run_to_end(*self.arguments(self.undisturbed)).process.returncode:
            raise RuntimeError("the undisturbed run failed")

    def arguments(self, output: Path) -> tuple[object, ...]:
        return self.bundle, self.inputs, "-o", output, "--carry", "id", "--workers", WORKERS

    def bad_after(self) -> list[str]:
        """What is wrong with the results, which are deleted."""
        bad = [WRONG] if faults_of(self.output, self.undisturbed) else []
        if run_command("run", "--status", self.output)[0] != 0:
            bad.append(INCOMPLETE)
        shutil.rmtree(self.output)
        return bad


def wait_for_moment(run: Run, place: Place, draw: random.Random) -> None:
    """Wait until a random number of files is done, and a little longer."""
    moment = draw.randrange(FILES - 4)
    wait_for(lambda: done_in(place.output) >= moment or run.process.poll() is not None)
    time.sleep(draw.uniform(0, LONGEST_S))


def kill_worker(place: Place, draw: random.Random) -> list[str]:
    """Kill one worker; the run goes on, and its file is run by another one."""
    bad = []
    with started(*place.arguments(place.output)) as run:
        wait_for(lambda: len(run.others()) == WORKERS or run.process.poll() is not None)
        wait_for_moment(run, place, draw)
        with suppress(ProcessLookupError, IndexError):  # the last ones may have ended in this moment
            os.kill(draw.choice(run.others()), signal.SIGKILL)
        if run.end() != 0:
            bad.append(CODES)
    return bad + place.bad_after()


def kill_run(place: Place, draw: random.Random) -> list[str]:
    """Kill the run; its workers end, and the same command does the rest."""
    bad = []
    with started(*place.arguments(place.output)) as run:
        wait_for_moment(run, place, draw)
        run.process.kill()
        run.process.wait()
        if not wait_for(lambda: not run.others(), LEFT_S):
            bad.append(LEFT)
    if run_to_end(*place.arguments(place.output)).process.returncode:
        bad.append(CODES)
    return bad + place.bad_after()


def run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]:
    place, draw, figures = Place(work), random.Random(seed), []
    for what, kill in (("killed workers of a run", kill_worker), ("killed runs, run again", kill_run)):
        bad = Counter(dict.fromkeys(BAD, 0))
        times = max(1, round(TIMES * share))
        for number in range(times):
            progress(f"{what}: {number} of {times}")
            bad.update(kill(place, draw))
        figures.append(Figure(what, times, dict(bad), seed=seed))
    return figures
