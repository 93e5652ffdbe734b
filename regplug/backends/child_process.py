"""Runs a child process that may hang, print without end, leave children behind or die: nothing of it gets out."""

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

KEPT = 16_384  # bytes of each stream; a child may print for ever
TURN = 0.02  # seconds between two looks at a child


@dataclass
class Ended:
    """How a child ended: ``code`` as ``subprocess`` gives it, negative for a signal; None when it was stopped."""

    code: int | None
    out: str = field(default="")
    err: str = field(default="")


def run_bounded(
    command: Sequence[str],
    overdue: Callable[[], bool],
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Ended:
    """Run a command until it ends or ``overdue`` says so; then end it and all that it started.

    Args:
        command: The program and its arguments.
        overdue: Asked many times a second.
        env: Its environment; None for ours.
        folder: Where it runs; None for here.

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
            # not until the streams end: a grandchild that lives on may hold them open
            while not _has_ended(child) and not (stopped := overdue()):
                _read(selector, kept, TURN)
            _read(selector, kept, 0)
        finally:
            # its leader is not reaped yet, so nobody else can have this number
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            for stream in kept:
                stream.close()
    out, err = (content.decode(errors="replace") for content in kept.values())
    return Ended(None if stopped else child.returncode, out, err)


def run_elsewhere(command: Sequence[str], overdue: Callable[[], bool]) -> Ended:
    """Run a command of ``python_child`` as ``run_bounded`` does, in a folder of its own."""
    variables = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory(prefix="regplug-doctor-", ignore_cleanup_errors=True) as folder:
        return run_bounded(command, overdue, variables, Path(folder))


def until(seconds: float, stop: Callable[[], bool]) -> Callable[[], bool]:
    """What is true after so many seconds, or when ``stop`` says so."""
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
        kept[stream] += content[: KEPT - len(kept[stream])]
