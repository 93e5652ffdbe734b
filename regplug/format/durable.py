"""Operations on files and folders that are on the disk when they return; on failure they raise ``OSError``."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from regplug.format.filesystem_support import NO_CHMOD, NO_LINK, NOT_OFFERED, lacks

AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
COPY_CHUNK = 1 << 20  # bytes


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of the file or folder at a path, for reading; symbolic links are not followed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes, prepare: Callable[[int], None] = lambda descriptor: None) -> None:
    """Write a new file and sync it; ``prepare`` gets its descriptor while the file is still empty."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        prepare(descriptor)
        write_all(descriptor, data)
    finally:
        os.close(descriptor)


def copy_file(source: int, path: Path, prepare: Callable[[int], None]) -> None:
    """Copy an open file, with its times, to a new file, and sync it; ``prepare`` as for ``write_file``."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        prepare(descriptor)
        while part := os.read(source, COPY_CHUNK):
            write_fully(descriptor, part)
        with suppress(OSError):  # some file systems do not allow setting times
            status = os.fstat(source)
            os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))
        _sync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes to an open file, and sync it."""
    write_fully(descriptor, data)
    _sync(descriptor)


def write_fully(descriptor: int, data: bytes | memoryview) -> None:
    """Write all bytes to an open file."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries."""
    # the path may go through a link, which `opened` would refuse
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
        lacks("fsync")


@contextmanager
def made_folders(folder: Path) -> Iterator[None]:
    """Make a folder and its missing parents; if the block fails, the new ones are removed again."""
    missing = list(takewhile(lambda one: not one.is_dir(), [folder, *folder.parents]))
    made = []
    try:
        for one in reversed(missing):
            try:
                one.mkdir()
            except FileExistsError:
                if not one.is_dir():
                    raise
            else:
                made.append(one)
                sync_folder(one.parent)
        yield
    except BaseException:
        for one in reversed(made):
            with suppress(OSError):  # another process may have put something there
                one.rmdir()
        raise


def make_like(descriptor: int, old: os.stat_result, most: int = 0o7777) -> None:
    """Give an open file or folder the owner, the group and at most the permissions ``old`` had.

    If the group cannot be set, the group gets no permissions: our own group had none before.
    """
    mode = stat.S_IMODE(old.st_mode) & most
    for owner in (old.st_uid, -1):  # only root may change the owner; users may set any group they are in
        new = os.fstat(descriptor)
        if new.st_gid != old.st_gid or owner not in (new.st_uid, -1):
            with suppress(OSError):
                os.fchown(descriptor, owner, old.st_gid)
    if os.fstat(descriptor).st_gid != old.st_gid:
        mode &= ~(stat.S_IRWXG | stat.S_ISGID)
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        if error.errno not in NO_CHMOD:
            raise
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & ~mode:
            why = "the file system does not support chmod, and more users could read the new one than the old one"
            raise OSError(error.errno, why) from error
        lacks("chmod")


def change_mode(folder: Path, mode: int) -> None:
    """Set the permissions of a folder we own, if the file system has permissions."""
    try:
        folder.chmod(mode)
    except OSError as error:
        if error.errno not in NO_CHMOD:
            raise
        lacks("chmod")


def exchange(one: Path, other: Path) -> None:
    """Atomically exchange two files or folders."""
    _rename(one, other, RENAME_EXCHANGE)


def rename_to_new(source: Path, target: Path) -> None:
    """Rename a file without replacing anything; ``FileExistsError`` if the target exists, even if just created."""
    try:
        _rename(source, target, RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
        _link_or_rename(source, target)


def _link_or_rename(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
        source.unlink()
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        lacks("link")
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        source.rename(target)


def _rename(source: Path, target: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, "this system has no renameat2")
    if libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
