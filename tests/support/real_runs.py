"""``regplug run`` in real processes, each in a session of its own, and what is left of them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import regplug
from support.environment import clean_environment, take_interrupts
from support.token_files import lists, registers

JOURNAL = "_regplug_run.jsonl"
DEADLINE_S = 120.0  # a busy machine is slow; a run that hangs is killed


class Run:
    """A run that has been started.

    Args:
        arguments: Those of ``regplug run``.
        env: Further variables.
        before: Shell commands, as ``ulimit``.
    """

    def __init__(self, *arguments: object, env: dict[str, str] | None = None, before: str = "") -> None:
        words = [sys.executable, "-m", "regplug", "run", *map(str, arguments)]
        if before:
            words = ["bash", "-c", f'{before}; exec "$@"', "bash", *words]
        paths = [str(Path(regplug.__file__).parents[1]), *(env or {}).pop("PYTHONPATH", "").split(os.pathsep)]
        own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            words,
            env=clean_environment() | own | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=take_interrupts,
        )
        self.out = self.err = ""

    def end(self) -> int:
        """Wait for its end; its exit code."""
        try:
            self.out, self.err = self.process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill_all()
            self.out, self.err = self.process.communicate()
            raise AssertionError(f"the run did not end in {DEADLINE_S} s: {self.out}{self.err}") from None
        return self.process.returncode

    def others(self) -> list[int]:
        """The living processes that it started."""
        return [pid for pid in session_of(self.process.pid) if pid != self.process.pid]

    def kill_all(self) -> None:
        for pid in session_of(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def session_of(leader: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state != "Z":
                    found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], bool], seconds: float = DEADLINE_S) -> bool:
    """Whether a condition became true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def journal_of(output: Path) -> list[dict]:
    """The whole lines of a journal."""
    try:
        data = (output / JOURNAL).read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def done_in(output: Path) -> int:
    return sum("done" in line for line in journal_of(output))


def results_of(output: Path) -> dict[str, bytes]:
    """The bytes of all files but the journal, by path."""
    paths = [path for path in output.rglob("*") if path.is_file() and path.name != JOURNAL]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}


def write_inputs(folder: Path, files: int = 40, rows: int = 200) -> Path:
    """Files of registers; the column ``id`` counts the rows of all of them."""
    folder.mkdir(parents=True)
    for number in range(files):
        write_rows(folder / f"part-{number:03}.parquet", number * rows, registers(rows, number))
    return folder


def write_rows(path: Path, first: int, rows: np.ndarray, group: int = 100) -> Path:
    table = pa.table({"id": pa.array(range(first, first + len(rows))), "registers": lists(rows)})
    pq.write_table(table, path, row_group_size=group)
    return path


def ids_of(output: Path) -> list[int]:
    """The column ``id`` of all results."""
    return [one for path in output.rglob("*.parquet") for one in pq.read_table(path).column("id").to_pylist()]


def faults_of(output: Path, undisturbed: Path) -> list[str]:
    """What is wrong with the results of a run that was disturbed and then completed."""
    wanted, got = results_of(undisturbed), results_of(output)
    faults = [f"{name}: missing" for name in wanted.keys() - got.keys()]
    faults += [f"{name}: not a result" for name in got.keys() - wanted.keys()]
    faults += [f"{name}: other bytes" for name in got.keys() & wanted.keys() if got[name] != wanted[name]]
    if sorted(ids_of(output)) != sorted(ids_of(undisturbed)):
        faults.append("rows: other ids")
    return faults


@contextlib.contextmanager
def started(*arguments: object, env: dict[str, str] | None = None, before: str = "") -> Iterator[Run]:
    """A run that is killed with all its processes after the block."""
    run = Run(*arguments, env=env, before=before)
    try:
        yield run
    finally:
        run.kill_all()
        run.process.wait()
        run.process.stdout.close()
        run.process.stderr.close()


def run_to_end(*arguments: object, env: dict[str, str] | None = None, before: str = "") -> Run:
    """A run that has ended."""
    with started(*arguments, env=env, before=before) as run:
        run.end()
        return run
