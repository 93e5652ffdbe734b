"""Runs trainings in other processes, one thread each: at these sizes two processes beat one with two threads."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regplug.backends.python_child import python_code
from regplug.commands.rank.entrants import Plan, Sources, Task, run
from regplug.commands.rank.probe import Scored
from regplug.errors import class_name, one_line
from regplug.format.temporary import temporary_folder

# not multiprocessing.Process: it imports the user's script again, which then ranks again
CHILD = "from regplug.commands.rank.workers import serve; serve(int(sys.argv[1]))"
ROWS = 4096
FILES = "regplug-rank-"  # the prefix of the folder of tensors that workers map

Done = Callable[[Task, "tuple[Scored, Tensor] | str"], bool]


def usable_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_here(tasks: Sequence[Task], plan: Plan, sources: Sources, done: Done) -> None:
    """Run tasks one after another in this process.

    Args:
        tasks: What to run.
        plan: How.
        sources: On what.
        done: Called with each task, and the scores and places of its samples, or a text that says why there are none.
            It returns whether the entrant's other tasks are still wanted.
    """
    dropped: set[str] = set()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for task in tasks:
            if task.entrant.name not in dropped and not done(task, _answer(task, plan, sources)):
                dropped.add(task.entrant.name)
    finally:
        torch.set_num_threads(threads)


def run_in_processes(tasks: Sequence[Task], plan: Plan, sources: Sources, done: Done, jobs: int) -> None:
    """As ``run_here``, in ``jobs`` processes, whose answers come one at a time. One that dies fails its task alone."""
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    with _stored(sources) as tensors:
        team = Team(waiting, (plan, tensors), done)
        threads = [threading.Thread(target=team.work, daemon=True) for _ in range(jobs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)  # without a limit, an interrupt would wait
        finally:
            team.stop()
    if team.failure is not None:
        raise team.failure


class Team:
    """Threads, each with a worker process, that take tasks from one queue.

    Args:
        waiting: The tasks.
        start: What a worker gets first.
        done: As for ``run_here``.
    """

    def __init__(self, waiting: queue.SimpleQueue[Task], start: Any, done: Done) -> None:
        self.waiting = waiting
        self.start = start
        self.done = done
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._stopped = False
        self._dropped: set[str] = set()
        self._processes: set[subprocess.Popen[bytes]] = set()

    def work(self) -> None:
        """Run tasks until there are none; one thread."""
        worker = None
        try:
            while not self._stopped:
                try:
                    task = self.waiting.get_nowait()
                except queue.Empty:
                    return
                if task.entrant.name in self._dropped:
                    continue
                worker = worker or self._new_worker()
                process, pipe = worker
                try:
                    _send(pipe, task)
                    answer = _receive(pipe)
                except (EOFError, OSError):
                    code, worker = process.wait(), None
                    answer = f"its process ended with {_ending(code)}, without an answer"
                with self._lock:
                    if not self._stopped and not self.done(task, answer):
                        self._dropped.add(task.entrant.name)
        except BaseException as error:  # raised again by the thread that waits
            self.failure = self.failure or error
            self._stopped = True
        finally:
            if worker is not None:
                worker[1].close()  # a worker ends when its pipe does
                worker[0].wait()

    def stop(self) -> None:
        """End all workers at once."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.kill()
        for process in self._processes:
            process.wait()

    def _new_worker(self) -> tuple[subprocess.Popen[bytes], Connection]:
        mine, theirs = Pipe()
        with theirs:
            command = python_code(CHILD, str(theirs.fileno()))
            with self._lock:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
                self._processes.add(process)
        _send(mine, self.start)
        return process, mine


def serve(descriptor: int) -> None:
    """The worker: gets the plan and the tensors' files, then tasks, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    torch.set_num_threads(1)
    with Connection(descriptor) as pipe:
        plan, stored = _receive(pipe)
        sources = _opened(stored)
        while True:
            try:
                task = _receive(pipe)
            except EOFError:
                return
            _send(pipe, _answer(task, plan, sources))


def _send(pipe: Connection, value: Any) -> None:
    pipe.send_bytes(pickle.dumps(value))  # Connection.send would share torch's tensors by descriptors


def _receive(pipe: Connection) -> Any:
    return pickle.loads(pipe.recv_bytes())


def _answer(task: Task, plan: Plan, sources: Sources) -> tuple[Scored, Tensor] | str:
    try:
        return run(task, plan, sources)
    except Exception as error:  # a strategy may raise anything, and the others go on
        return f"{class_name(error)}: {one_line(error)}"


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


@contextmanager
def _stored(sources: Sources) -> Iterator[dict[str, Any]]:
    """The tensors as files that all workers map, instead of a copy for each; those of killed rankings are deleted."""
    named = {**sources.tokens, "targets": sources.targets}
    if sources.groups is not None:
        named["groups"] = sources.groups
    with temporary_folder(Path(tempfile.gettempdir()), FILES) as folder:
        tensors = {}
        for name, tensor in named.items():
            path = folder / name
            with path.open("wb") as file:
                for part in tensor.split(ROWS):
                    part.contiguous().numpy().tofile(file)
            tensors[name] = (str(path), tuple(tensor.shape), tensor.dtype)
        yield {"tensors": tensors, "outputs": sources.outputs, "digest": sources.digest}


def _opened(stored: dict[str, Any]) -> Sources:
    tensors = {
        name: torch.from_file(path, shared=False, size=torch.Size(shape).numel(), dtype=dtype).reshape(shape)
        for name, (path, shape, dtype) in stored["tensors"].items()
    }
    targets, groups = tensors.pop("targets"), tensors.pop("groups", None)
    return Sources(tensors, targets, stored["outputs"], groups, stored["digest"])
