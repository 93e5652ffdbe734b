"""Undoes what importing third-party code does to the process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HANDLE = getattr(os, "O_PATH", os.O_RDONLY)  # a folder that can be entered may be unreadable


@contextmanager
def guard_process() -> Iterator[None]:
    """Restore the working folder and what is missing from ``sys.path``, and end the child if the import forks.

    Otherwise a relative path of the user would mean another place, imports would fail, and the child would do the
    host's work a second time.
    """
    pid, path = os.getpid(), list(sys.path)
    try:
        folder = os.open(os.curdir, HANDLE | os.O_CLOEXEC)
    except OSError:  # nothing to go back to
        folder = None
    try:
        yield
    finally:
        if os.getpid() != pid:  # a child has only the thread that forked, so the import forked
            os._exit(0)
        put_back_path(path)
        if folder is not None:
            with suppress(OSError):
                _go_back(folder)
            with suppress(OSError):  # closed by what was imported
                os.close(folder)


def put_back_path(path: list[str]) -> None:
    """Add to ``sys.path`` what is missing from it; what was added stays."""
    now = sys.path if isinstance(sys.path, list) else []
    known = {one for one in now if type(one) is str}
    missing = [one for one in path if type(one) is str and one not in known]
    if missing or now is not sys.path:
        sys.path = [*now, *missing]


def _go_back(folder: int) -> None:
    try:
        is_here = os.path.samestat(os.stat(os.curdir), os.fstat(folder))  # noqa: PTH116  # cheap, once for each plugin
    except FileNotFoundError:  # the new folder no longer exists
        is_here = False
    if not is_here:
        os.fchdir(folder)
