"""Runs a child process that may hang, print without end, leave processes behind or crash; the parent is unaffected."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

MAX_OUTPUT = 1 << 20  # bytes kept of each stream; a child may print forever
POLL_S = 0.02


@dataclass
class Ended:
    """How a child ended: ``code`` as in ``subprocess``, negative for a signal; None if it was stopped."""

    code: int | None
    out: str = field(default="")
    err: str = field(default="")


def run_bounded(
    command: Sequence[str],
    overdue: Callable[[], bool],
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Ended:
    """Run a command until it ends or ``overdue`` returns True; then kill its process group.

    Args:
        command: The program and its arguments.
        overdue: Called many times a second.
        env: Its environment; None for that of this process.
        folder: Its working directory; None for that of this process.

    Raises:
        OSError: The program cannot be started.
    """
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        cwd=folder,
        start_new_session=True,
    )
    kept = {stream: b"" for stream in (child.stdout, child.stderr) if stream is not None}
    stopped = False
    with selectors.DefaultSelector() as selector:
        for stream in kept:
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
        try:
            # do not wait for the end of the streams: a grandchild that lives on may keep them open
            while not _has_ended(child) and not (stopped := overdue()):
                _read(selector, kept, POLL_S)
            _read(selector, kept, 0)
        finally:
            # the child is not reaped yet, so no other process can have its id
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            for stream in kept:
                stream.close()
    out, err = (content.decode(errors="replace") for content in kept.values())
    return Ended(None if stopped else child.returncode, out, err)


def run_elsewhere(command: Sequence[str], overdue: Callable[[], bool]) -> Ended:
    """Run a command from ``python_child`` with ``run_bounded``, in a new empty folder."""
    variables = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory(prefix="regplug-doctor-", ignore_cleanup_errors=True) as folder:
        return run_bounded(command, overdue, variables, Path(folder))


def until(seconds: float, stop: Callable[[], bool] = lambda: False) -> Callable[[], bool]:
    """A function that returns True after so many seconds, or when ``stop`` does."""
    end = time.monotonic() + seconds
    return lambda: stop() or time.monotonic() > end


def format_exit(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _read(selector: selectors.BaseSelector, kept: dict[IO[bytes], bytes], seconds: float) -> None:
    if not selector.get_map():
        time.sleep(seconds)
    for key, _ in selector.select(seconds):
        stream = next(one for one in kept if one is key.fileobj)
        content = os.read(key.fd, 65_536)
        if not content:
            selector.unregister(stream)
        kept[stream] += content[: MAX_OUTPUT - len(kept[stream])]
