"""Temporary files and folders next to their target, locked while the writer lives and swept after it has died."""

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
from regplug.format.filesystem_support import NO_LOCKS, lacks

DIGITS = 6  # random bytes, two hexadecimal digits each
ABANDONED_S = 86_400.0  # without locks, an older file counts as abandoned


def prefix_for(place: Path) -> str:
    """The prefix of temporary names next to a path; random digits follow it."""
    return f".{place.name}.regplug-"


def unique_name(parent: Path, prefix: str) -> Path:
    """A new path that no other process uses."""
    return parent / f"{prefix}{secrets.token_hex(DIGITS)}"


def lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a file or folder; None if it is locked or does not exist."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    return descriptor if _take(descriptor, path) else None


def release(descriptor: int) -> None:
    """Release a lock. Errors are ignored: nothing was written through the descriptor, or it was synced before."""
    with suppress(OSError):
        os.close(descriptor)


def _take(descriptor: int, path: Path) -> bool:
    """Lock an open file or folder; close it instead if it is no longer at its path."""
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
    """Lock an open file or folder; False if the file system has no locks.

    Raises:
        BlockingIOError: Another process, or another descriptor of this process, holds the lock.
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
    """Whether a file or folder that we have locked has no living writer; without locks, guessed by its age."""
    return flock(descriptor) or time.time() - os.fstat(descriptor).st_mtime > ABANDONED_S


@contextmanager
def locked_folder(parent: Path, prefix: str, mode: int = 0o700) -> Iterator[Path]:
    """Make a folder and lock it during the block; the caller deletes it."""
    descriptor = None
    while descriptor is None:  # another process may sweep it before it is locked
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
    """Make a file, open for writing and locked during the block; afterwards it is deleted if it still exists."""
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
    """A locked folder, deleted after the block; first, what dead processes left with this prefix is deleted."""
    for path in stale(parent, prefix):
        delete(path)
    with locked_folder(parent, prefix) as folder:
        try:
            yield folder
        finally:
            delete(folder)


def stale(parent: Path, prefix: str) -> Iterator[Path]:
    """What dead processes left with this prefix; each is locked until the next is requested."""
    ours = re.compile(re.escape(prefix) + f"[0-9a-f]{{{2 * DIGITS}}}")
    for path in [entry for entry in parent.iterdir() if ours.fullmatch(entry.name)]:
        try:
            descriptor = lock(path)
        except OSError:  # a link, or owned by another user
            continue
        if descriptor is not None:
            try:
                if is_abandoned(descriptor):
                    yield path
            finally:
                release(descriptor)


def sweep(place: Path) -> None:
    """Delete what dead writers left next to a path.

    One may be the old bundle of an exchange that is not yet on the disk, and so the only one after a crash: the parent
    folder is synced first.
    """
    synced = False
    for path in stale(place.parent, prefix_for(place)):
        if not synced:
            sync_folder(place.parent)
            synced = True
        delete(path)


def delete(path: Path) -> None:
    """Delete a file or folder; what cannot be deleted is left for the next sweep.

    Links are not followed, also if one replaces the folder during this call.
    """
    with suppress(OSError):
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except NotADirectoryError:  # also for a link
            path.unlink(missing_ok=True)
            return
        try:
            if not os.fstat(folder).st_mode & stat.S_IWUSR:  # without it, nothing inside can be deleted
                os.fchmod(folder, 0o700)
        finally:
            release(folder)
        shutil.rmtree(path, ignore_errors=True)
