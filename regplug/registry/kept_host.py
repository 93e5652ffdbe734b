"""Undoes what code of others does to the process as it is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HANDLE = getattr(os, "O_PATH", os.O_RDONLY)  # a folder that may be entered need not be readable


@contextmanager
def kept_host() -> Iterator[None]:
    """Put back the working folder and what is gone from ``sys.path``, and end the copy of this process if it forks.

    A relative path of the user's would mean another place, nobody could import any more, and the copy would do the
    host's work twice.
    """
    pid, path = os.getpid(), list(sys.path)
    try:
        folder = os.open(os.curdir, HANDLE | os.O_CLOEXEC)
    except OSError:  # nothing to go back to
        folder = None
    try:
        yield
    finally:
        if os.getpid() != pid:  # only the thread that forked lives on in a copy, so the import did it
            os._exit(0)
        put_back_path(path)
        if folder is not None:
            with suppress(OSError):
                _go_back(folder)
            with suppress(OSError):  # closed by what was imported
                os.close(folder)


def put_back_path(path: list[str]) -> None:
    """Add to ``sys.path`` what is gone from it; what was added stays."""
    now = sys.path if isinstance(sys.path, list) else []
    known = {one for one in now if type(one) is str}
    missing = [one for one in path if type(one) is str and one not in known]
    if missing or now is not sys.path:
        sys.path = [*now, *missing]


def _go_back(folder: int) -> None:
    try:
        is_here = os.path.samestat(os.stat(os.curdir), os.fstat(folder))  # noqa: PTH116  # cheap, once for each plugin
    except FileNotFoundError:  # the new one is gone
        is_here = False
    if not is_here:
        os.fchdir(folder)
