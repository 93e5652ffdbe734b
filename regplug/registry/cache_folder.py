"""The cache folder: files that regplug can make again."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def cache_folder() -> Path:
    """``$REGPLUG_CACHE_DIR``, else ``regplug`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        OSError: The user has no home.
    """
    if own := os.environ.get("REGPLUG_CACHE_DIR"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "regplug"
    try:
        return Path.home() / ".cache" / "regplug"
    except RuntimeError as error:
        raise OSError("no home directory; set REGPLUG_CACHE_DIR") from error


def check_ours(folder: Path) -> None:
    """Check that only this user can write into a folder, because its files are trusted, or run.

    Raises:
        FileNotFoundError: The folder does not exist.
        PermissionError: The folder is another user's, or others may write into it; the message says how to fix that.
    """
    status = folder.stat()
    if status.st_uid != os.geteuid():
        why = "the folder is not this user's alone, another one owns it; set REGPLUG_CACHE_DIR"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        why = "the folder is not this user's alone, others may write into it; run chmod go-w on it"
    else:
        return
    raise PermissionError(None, why, str(folder))


def read_regular(path: Path, most: int | None = None) -> bytes:
    """The content of a regular file, without waiting for a pipe or following a link of that name.

    Args:
        path: The file.
        most: Bytes that it may have; None for any size.

    Raises:
        OSError: It is not a regular file, is larger, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or (most is not None and status.st_size > most):
            raise OSError(None, "expected a regular file of a bounded size", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read() if most is None else file.read(most)
    finally:
        os.close(descriptor)
