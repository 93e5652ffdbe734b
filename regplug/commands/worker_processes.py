"""Processes that work through a queue of tasks. One that dies takes neither the others nor this process with it."""

from __future__ import annotations

import os
import pickle
import pkgutil
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from regplug.backends.python_child import python_code
from regplug.errors import class_name, one_line

# not multiprocessing.Process: it imports the user's script again, which then starts all over
CHILD = "from regplug.commands.worker_processes import serve; serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))"
SAID, ANSWERED = "said", "answered"
HINTS = {
    "SIGBUS": " (a file became shorter while it was mapped into memory, or a disk failed)",
    "SIGKILL": " (the system may have had no memory left)",
}
EXIT_TIMEOUT_S = 10.0  # for a worker that has closed its pipe

TaskT = TypeVar("TaskT")
Say = Callable[[Any], None]


def usable_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Died:
    """What came instead of an answer: the worker ended, by a signal if the code is negative."""

    code: int

    def __str__(self) -> str:
        if self.code >= 0:
            return f"its process ended with exit code {self.code}, without an answer"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = f"signal {-self.code}"
        return f"its process ended with {name}{HINTS.get(name, '')}, without an answer"


@dataclass(frozen=True)
class Failed:
    """What came instead of an answer: the worker could not begin, as a module that a task needs is not on its path."""

    reason: str

    def __str__(self) -> str:
        return self.reason


class Team(Generic[TaskT]):
    """Threads, each with a worker process.

    Args:
        tasks: What to do.
        worker: ``MODULE:FUNCTION``; a worker calls it once with ``start``, and what it returns with each task and a
            function that reports progress; whatever it returns is the answer.
        start: The function's argument; it is pickled, as tasks and answers are.
        answered: Called with a task and its answer, or ``Died`` or ``Failed``; one call at a time. False: begin no more
            tasks; those that have begun are finished.
        said: Called with what a worker reports; one call at a time.
        wanted: Called before a task is begun; False leaves it out.
    """

    def __init__(
        self,
        tasks: Iterable[TaskT],
        worker: str,
        start: Any,
        answered: Callable[[TaskT, Any], bool],
        said: Callable[[Any], None] = lambda report: None,
        wanted: Callable[[TaskT], bool] = lambda task: True,
    ) -> None:
        self._waiting: queue.SimpleQueue[TaskT] = queue.SimpleQueue()
        for task in tasks:
            self._waiting.put(task)
        self._command = worker
        self._start = pickle.dumps(start)
        self._answered, self._said, self._wanted = answered, said, wanted
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._stopped = False  # begin no task
        self._ended = False  # report no answer: the pipes may be closed because we killed the workers
        self._processes: set[subprocess.Popen[bytes]] = set()

    def run(self, jobs: int) -> None:
        """Do all tasks in ``jobs`` processes; an exception of ``answered`` is raised here."""
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(jobs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive() and self._failure is None:
                    thread.join(0.1)  # without a limit, an interrupt would wait
        finally:
            self._end()
        if self._failure is not None:
            raise self._failure

    def again(self, task: TaskT) -> None:
        """Put a task back; for ``answered``."""
        self._waiting.put(task)

    def _work(self) -> None:
        # workers inherit this: an interrupt at a terminal, which all get, must not end one before it calls serve
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        worker = None
        try:
            while not self._stopped:
                try:
                    task = self._waiting.get_nowait()
                except queue.Empty:
                    return
                if not self._wanted(task):
                    continue
                worker = worker or self._new_worker()
                if worker is None:
                    return
                answer = self._answer_of(worker, task)
                if isinstance(answer, Died):
                    worker = None
                with self._lock:
                    self._report(task, answer)
        except BaseException as error:  # raised again by the thread that waits
            self._fail(error)
        finally:
            if worker is not None:
                worker.close()

    def _report(self, task: TaskT, answer: Any) -> None:
        if self._ended:
            return
        try:
            if not self._answered(task, answer):
                self._stopped = True
        except BaseException as error:  # before another thread reports
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._stopped = self._ended = True

    def _answer_of(self, worker: _Worker, task: TaskT) -> Any:
        kind, value = worker.ask(task)
        while kind == SAID:
            with self._lock:
                if not self._ended:
                    self._said(value)
            kind, value = worker.receive()
        return value

    def _new_worker(self) -> _Worker | None:
        with self._lock:
            if self._ended:
                return None
            worker = _Worker(self._command, self._start)
            self._processes.add(worker.process)
        return worker

    def _end(self) -> None:
        self._stopped = True
        with self._lock:
            self._ended = True
            for process in self._processes:
                process.kill()
        for process in self._processes:
            process.wait()


class _Worker:
    """A process and the pipe to it. It ends when this process does, even in the middle of a task."""

    def __init__(self, command: str, start: bytes) -> None:
        self._pipe, theirs = Pipe()
        life, self._life = os.pipe()  # nothing is written: the worker sees when our end is closed
        with theirs:
            code = python_code(CHILD, command, str(theirs.fileno()), str(life))
            self.process = subprocess.Popen(code, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno(), life])
        os.close(life)
        self._start = start

    def ask(self, task: Any) -> tuple[str, Any]:
        """Send a task; the first message that comes back."""
        with suppress(OSError):  # the worker has died, which `receive` finds
            if self._start:
                self._pipe.send_bytes(self._start)
                self._start = b""
            self._pipe.send_bytes(pickle.dumps(task))  # Connection.send would share torch's tensors by descriptors
        return self.receive()

    def receive(self) -> tuple[str, Any]:
        """The next message; ``Died`` as the answer of a worker that has died, which is closed then."""
        try:
            message: tuple[str, Any] = pickle.loads(self._pipe.recv_bytes())
            return message
        except (EOFError, OSError):
            return ANSWERED, Died(self.close())

    def close(self) -> int:
        """Let the worker end, and wait for it; its exit code."""
        self._pipe.close()
        try:
            code = self.process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:  # a plugin's thread
            self.process.kill()
            code = self.process.wait()
        os.close(self._life)
        return code


def serve(command: str, descriptor: int, life: int) -> None:
    """The worker: gets what its function is called with, then tasks, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    threading.Thread(target=_end_with_parent, args=(life,), daemon=True).start()
    with Connection(descriptor) as pipe:
        try:
            begin = pipe.recv_bytes()
            answer = _or_failure(lambda: pkgutil.resolve_name(command)(pickle.loads(begin)))
            while True:
                task = pipe.recv_bytes()
                pipe.send_bytes(pickle.dumps((ANSWERED, _answer(answer, task, pipe))))
        except (EOFError, BrokenPipeError):
            return


def _answer(answer: Any, task: bytes, pipe: Connection) -> Any:
    if isinstance(answer, Failed):
        return answer
    return _or_failure(lambda: answer(pickle.loads(task), lambda report: _say(pipe, report)))


def _or_failure(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # unpickling imports plugins and users' modules, which raise anything
        return Failed(f"{class_name(error)}: {one_line(error)}")


def _say(pipe: Connection, report: Any) -> None:
    pipe.send_bytes(pickle.dumps((SAID, report)))


def _end_with_parent(life: int) -> None:
    os.read(life, 1)  # ends when the parent does
    os._exit(1)
