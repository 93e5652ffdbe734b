"""Which calls a file system lacks, and which promise is weaker for it: said in one line for each place."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# what a file system answers that has no such call, where other errors say that the call failed
NOT_OFFERED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})
NO_LOCKS = NOT_OFFERED | {errno.ENOLCK, errno.EBADF}  # NFS locks no file that is open for reading
NO_EXCHANGE = NOT_OFFERED | {errno.EXDEV}  # overlay, for what is in its lower layer
NO_CHMOD = NOT_OFFERED | {errno.EPERM, errno.EACCES}
NO_LINK = NOT_OFFERED | {errno.EPERM, errno.EMLINK}

# docs/SECURITY.md has the same table
WEAKER = {
    "flock": "exports to one place at the same time are not kept apart",
    "renameat2": "what is replaced is missing for a moment; after a crash then, the next export puts it in place",
    "fsync": "a power failure may lose what was written",
    "chmod": "permissions are those that the file system gives, and others may read what is being written",
    "link": "a file that somebody else makes at the same moment may be replaced",
}

log = logging.getLogger("regplug")
_missing: ContextVar[dict[str, None] | None] = ContextVar("missing", default=None)


def lacks(call: str) -> None:
    """Note that the file system has no such call: one of ``WEAKER``."""
    missing = _missing.get()
    if missing is not None:
        missing[call] = None


@contextmanager
def weaker_promises_said(owner: str) -> Iterator[None]:
    """Log one line, when this ends, about the calls that the file system lacks.

    Args:
        owner: What is written, for the message: ``bundle DIR``.
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
