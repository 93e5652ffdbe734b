"""Keeps the command's own stdout separate from what plugins, libraries and child processes print."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

_own: TextIO | None = None  # where the command's data goes; None for the current sys.stdout
_errors: TextIO | None = None  # where its errors go; None for the current sys.stderr
_others: TextIO | None = None  # the sys.stdout of other code; None for sys.stderr


def claim() -> None:
    """Keep stdout for the command's data: what other code writes to descriptor 1 goes to stderr from now on.

    Stdin is empty from now on, so that plugins cannot prompt. A closed stdin or stderr becomes ``/dev/null``, so that
    no file that is opened later gets its number. Until ``apart``, ``sys.stdout`` is the command's, for click's help.

    Raises:
        OSError: Stdout is closed.
    """
    global _errors, _others
    os.fstat(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    if not _is_open(2):
        os.dup2(nowhere, 2)
    _others = sys.stdout or os.fdopen(1, "w", closefd=False)
    _errors = os.fdopen(os.dup(2), "w", encoding=_others.encoding, errors="backslashreplace", buffering=1)
    _others.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=_others.encoding, errors=_others.errors)
    os.dup2(2, 1)
    os.dup2(nowhere, 0)
    if nowhere > 2:
        os.close(nowhere)
    # a child that a plugin forks must neither print the data again nor keep the reader of a pipe waiting
    os.register_at_fork(after_in_child=_Silenced(sys.stdout))


@contextmanager
def apart() -> Iterator[None]:
    """While a command runs, ``sys.stdout`` is for other code, and ``own_stdout`` is what it was.

    In a process that claimed stdout it stays so to the end, because another thread may still print.
    """
    global _own
    if _others is None:
        with briefly_apart():
            yield
    else:
        _own, sys.stdout = _own or sys.stdout, _others
        yield


@contextmanager
def briefly_apart() -> Iterator[None]:
    """As ``apart``, but ``sys.stdout`` is restored afterwards: click prints plugins' names there."""
    global _own
    before, stdout = _own, sys.stdout
    _own, sys.stdout = _own or stdout, _others or sys.stderr
    try:
        yield
    finally:
        _own, sys.stdout = before, stdout


def own_stdout() -> TextIO | None:
    """Where the command's data goes; None for the current ``sys.stdout``."""
    return _own


def own_stderr() -> TextIO | None:
    """Where its errors and its progress go, even if a plugin closed stderr; None for the current ``sys.stderr``."""
    return _errors


def end(code: int) -> NoReturn:
    """End the process with this code now, without waiting for threads and exit hooks of plugins."""
    for stream in (_others, sys.__stderr__, _errors):  # the data is flushed as it is printed
        with suppress(Exception):  # a plugin may have closed it
            if stream is not None:
                stream.flush()
    os._exit(code)


class _Silenced:
    """Points a stream to ``/dev/null`` in a forked child."""

    def __init__(self, stream: TextIO) -> None:
        self._descriptor = stream.fileno()

    def __call__(self) -> None:
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._descriptor, inheritable=False)
            os.close(nowhere)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
