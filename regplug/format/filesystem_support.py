"""Logs which system calls a file system lacks, and which guarantee is weaker because of that."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# errors that mean "not supported"; other errors mean that the call failed
NOT_OFFERED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})
NO_LOCKS = NOT_OFFERED | {errno.ENOLCK, errno.EBADF}  # NFS does not lock a file opened for reading
NO_EXCHANGE = NOT_OFFERED | {errno.EXDEV}  # overlay file systems, for files in the lower layer
NO_CHMOD = NOT_OFFERED | {errno.EPERM, errno.EACCES}
NO_LINK = NOT_OFFERED | {errno.EPERM, errno.EMLINK}

# docs/SECURITY.md has the same table
WEAKER = {
    "flock": "two exports to one path at the same time may mix",
    "renameat2": "a bundle is missing for a moment while it is replaced; after a crash the next export repairs that",
    "fsync": "a power failure may lose what was written",
    "chmod": "the file system sets the permissions, and other users may read files while they are written",
    "link": "a file created at the same moment by another process may be replaced",
}

log = logging.getLogger("regplug")
_missing: ContextVar[dict[str, None] | None] = ContextVar("missing", default=None)


def lacks(call: str) -> None:
    """Record that the file system does not support a call, one of ``WEAKER``."""
    missing = _missing.get()
    if missing is not None:
        missing[call] = None


@contextmanager
def log_weaker_promises(owner: str) -> Iterator[None]:
    """At the end of the block, log one line about the calls that the file system lacks.

    Args:
        owner: What is written, for the message, such as ``bundle DIR``.
    """
    missing: dict[str, None] = {}
    token = _missing.set(missing)
    try:
        yield
    finally:
        _missing.reset(token)
        if missing:
            weaker = "; ".join(f"no {call}: {WEAKER[call]}" for call in missing)
            log.warning("%s: the file system has less than a local one: %s.", owner, weaker)
