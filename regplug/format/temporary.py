"""What is written beside its place first: locked while its writer lives, and swept when the writer has died."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from regplug.format.durable import sync_folder
from regplug.format.promises import NO_LOCKS, lacks

DIGITS = 6  # random bytes, two digits each
ABANDONED_S = 86_400.0  # where nothing tells the dead writer from the living one, what is older is a dead one's


def prefix_for(place: Path) -> str:
    """How the names begin of what is written beside a place; random digits follow."""
    return f".{place.name}.regplug-"


def unique_name(parent: Path, prefix: str) -> Path:
    """A path that nobody else takes."""
    return parent / f"{prefix}{secrets.token_hex(DIGITS)}"


def lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a file or a folder; None where another holds it, or nothing stands there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    return descriptor if _take(descriptor, path) else None


def release(descriptor: int) -> None:
    """Give a lock back. Nothing was written through a descriptor that is closed here and not checked before."""
    with suppress(OSError):
        os.close(descriptor)


def _take(descriptor: int, path: Path) -> bool:
    """Lock an open file or folder, if it stands at its path still; else close it."""
    taken = False
    try:
        flock(descriptor)
        taken = os.path.samestat(os.fstat(descriptor), path.lstat())
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        if not taken:
            release(descriptor)
    return taken


def flock(descriptor: int) -> bool:
    """Lock an open file or folder; False where the file system has no locks.

    Raises:
        BlockingIOError: Another process, or another descriptor of this one, holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        lacks("flock")
        return False
    return True


def is_abandoned(descriptor: int) -> bool:
    """Whether what we have locked has no living writer: where the file system has no locks, that is a guess by age."""
    return flock(descriptor) or time.time() - os.fstat(descriptor).st_mtime > ABANDONED_S


@contextmanager
def locked_folder(parent: Path, prefix: str, mode: int = 0o700) -> Iterator[Path]:
    """Make a folder that is locked meanwhile; whoever asks for it deletes it."""
    descriptor = None
    while descriptor is None:  # a sweeper may take it for a dead one's before it is locked
        folder = unique_name(parent, prefix)
        folder.mkdir(mode)
        try:
            descriptor = lock(folder)
        except BaseException:
            delete(folder)
            raise
    try:
        yield folder
    finally:
        release(descriptor)


@contextmanager
def locked_file(parent: Path, prefix: str, mode: int) -> Iterator[tuple[int, Path]]:
    """Make a file that is locked meanwhile, open for writing; deleted afterwards if it stands there still."""
    taken = False
    while not taken:
        path = unique_name(parent, prefix)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            taken = _take(descriptor, path)
        except BaseException:
            delete(path)
            raise
    try:
        yield descriptor, path
    finally:
        delete(path)
        release(descriptor)


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A locked folder that is deleted afterwards; what dead processes left under such names goes first."""
    for path in stale(parent, prefix):
        delete(path)
    with locked_folder(parent, prefix) as folder:
        try:
            yield folder
        finally:
            delete(folder)


def stale(parent: Path, prefix: str) -> Iterator[Path]:
    """What dead processes left under such names, each locked until the next is asked for."""
    ours = re.compile(re.escape(prefix) + f"[0-9a-f]{{{2 * DIGITS}}}")
    for path in [entry for entry in parent.iterdir() if ours.fullmatch(entry.name)]:
        try:
            descriptor = lock(path)
        except OSError:  # a link, or another user's
            continue
        if descriptor is not None:
            try:
                if is_abandoned(descriptor):
                    yield path
            finally:
                release(descriptor)


def sweep(place: Path) -> None:
    """Delete what dead writers left beside a place.

    It may be a bundle whose exchange has not reached the disk, the only one there after a crash: so the exchange first.
    """
    synced = False
    for path in stale(place.parent, prefix_for(place)):
        if not synced:
            sync_folder(place.parent)
            synced = True
        delete(path)


def delete(path: Path) -> None:
    """Delete a file or a folder; what cannot be deleted is left to the next who sweeps.

    No link is followed, one that is put in the place of a folder meanwhile neither.
    """
    with suppress(OSError):
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except NotADirectoryError:  # a link, too
            path.unlink(missing_ok=True)
            return
        try:
            if not os.fstat(folder).st_mode & stat.S_IWUSR:  # nothing can be deleted inside a folder without it
                os.fchmod(folder, 0o700)
        finally:
            release(folder)
        shutil.rmtree(path, ignore_errors=True)
