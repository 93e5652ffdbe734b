"""Puts a bundle's folder in place atomically: readers see the old or the new bundle, even after a crash."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from regplug.errors import ExportError
from regplug.format.destination import BUNDLE_FILES, FILLING, Place, check_place, files_being_written, mount_point
from regplug.format.durable import (
    change_mode,
    copy_file,
    exchange,
    made_folders,
    make_like,
    opened,
    sync_folder,
    write_file,
)
from regplug.format.filesystem_support import NO_EXCHANGE, lacks, log_weaker_promises
from regplug.format.folder import MANIFEST
from regplug.format.temporary import (
    delete,
    is_abandoned,
    lock,
    locked_folder,
    prefix_for,
    release,
    stale,
    sweep,
    unique_name,
)

LOCK_TIMEOUT_S = 60.0  # another exporter holds the lock while it writes


def write_folder(directory: Path, files: Mapping[str, bytes], force: bool) -> None:
    """Write ``files`` as the folder ``directory``, atomically.

    The files are written to a sibling folder and synced; then it is renamed, or exchanged with the old bundle. The
    user's files in the old bundle are copied into the new one, and the old one is deleted once the exchange is on the
    disk. A folder that counts as empty is filled, the manifest last. If the file system lacks a call for this, the next
    best way is used and one line is logged.

    Raises:
        ExportError: Something is there that must be kept, or the system refuses.
    """
    with log_weaker_promises(f"bundle {directory}"):
        try:
            with made_folders(directory.parent):
                while True:
                    with suppress(_CreatedConcurrently):
                        _write(directory, files, force)
                        break
        except OSError as error:
            raise ExportError(
                f"bundle {directory}: cannot be written: {error.strerror or error}; nothing was changed."
            ) from error


class _CreatedConcurrently(Exception):
    """Something was created at the path just now: check it again."""


def _write(directory: Path, files: Mapping[str, bytes], force: bool) -> None:
    if check_place(directory, force) is not Place.EMPTY:  # for an empty folder, its parent may be read-only
        _finish_replacing(directory)
        sweep(directory)
    with _held(directory, force) as (place, descriptor):
        if place is Place.EMPTY:
            _fill(directory, files, descriptor)
            return
        with _sibling(directory) as folder:
            if place is Place.NOTHING:
                _make(directory, folder, files)
            else:
                _replace(directory, folder, files, os.fstat(descriptor))


def _make(directory: Path, folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the sibling folder, and rename it into place."""
    made = folder.stat()
    # closed to other users while it is written; files inside get their final group
    change_mode(folder, 0o700 | (made.st_mode & stat.S_ISGID))
    for name, data in files.items():
        write_file(folder / name, data)
    change_mode(folder, stat.S_IMODE(made.st_mode))
    sync_folder(folder)
    try:
        folder.rename(directory)  # never replaces a folder that is not empty
    except OSError as error:
        if os.path.lexists(directory):
            raise _CreatedConcurrently from error
        raise


def _replace(directory: Path, folder: Path, files: Mapping[str, bytes], old: os.stat_result) -> None:
    """Write the sibling folder, with the old one's permissions and the user's files, and exchange the two."""
    change_mode(folder, 0o700 | (old.st_mode & stat.S_ISGID))
    _write_in_place_of(directory, folder, files)
    with opened(folder) as descriptor:
        make_like(descriptor, old)
    sync_folder(folder)
    try:
        exchange(folder, directory)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise mount_point(directory) from error
        if error.errno not in NO_EXCHANGE:
            raise
        lacks("renameat2")
        _replace_in_steps(directory, folder)


def _replace_in_steps(directory: Path, folder: Path) -> None:
    """Replace the bundle by renames, for file systems without an exchange; the old bundle takes the sibling's name.

    Until then the new bundle has a name by which the next writer finds it after a crash: see ``_finish_replacing``.
    """
    ready = unique_name(directory.parent, _ready_prefix(directory))
    folder.rename(ready)
    try:
        sync_folder(directory.parent)
        try:
            directory.rename(folder)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise mount_point(directory) from error
            if error.errno != errno.EXDEV:
                raise
            _delete_bundle(directory)  # overlay moves no folder of its lower layer
        ready.rename(directory)
    except BaseException:
        with suppress(OSError):
            if os.path.lexists(folder):
                folder.rename(directory)
        if not (directory / MANIFEST).exists():
            raise ExportError(
                f"bundle {directory}: cannot be put in place, and the old one is gone; the new one is whole in "
                f"{ready.name}, next to it: rename that."
            ) from None
        ready.rename(folder)
        raise


def _delete_bundle(directory: Path) -> None:
    """Delete a bundle's folder, the manifest first: without it the rest is none."""
    (directory / MANIFEST).unlink()
    delete(directory)


def _ready_prefix(directory: Path) -> str:
    return f"{prefix_for(directory)}ready-"


def _finish_replacing(directory: Path) -> None:
    """Put the new bundle in place if a writer died after it moved the old one away."""
    for ready in stale(directory.parent, _ready_prefix(directory)):
        if (directory / MANIFEST).exists():
            delete(ready)
        else:
            with suppress(OSError):  # a folder that is not empty is at the path: it may be the user's
                ready.rename(directory)
                sync_folder(directory.parent)


def _write_in_place_of(old: Path, new: Path, files: Mapping[str, bytes]) -> None:
    """Write a bundle's files with the old files' permissions, and copy the user's files next to them."""
    there = {entry.name: entry.lstat() for entry in old.iterdir()}
    for name, data in files.items():
        write_file(new / name, data, partial(_give_permissions, name, there))
    for name in there:
        if not BUNDLE_FILES.fullmatch(name):
            with opened(old / name) as descriptor:
                copy_file(descriptor, new / name, partial(_give_permissions, name, there))


def _give_permissions(name: str, there: Mapping[str, os.stat_result], descriptor: int) -> None:
    if name in there:
        make_like(descriptor, there[name])
    elif MANIFEST in there:  # a new file gets at most the manifest's permissions, and at most what the umask allows
        make_like(descriptor, there[MANIFEST], most=os.fstat(descriptor).st_mode)


def _fill(directory: Path, files: Mapping[str, bytes], descriptor: int) -> None:
    """Write into an existing folder: it may be a mount point or a working directory.

    Without a manifest the folder is not a bundle, so the manifest comes last. It is first written under another name:
    it lists the files that a writer leaves if it dies.
    """
    filling = directory / FILLING
    if os.path.lexists(filling):
        if not is_abandoned(descriptor):
            raise ExportError(
                f"bundle {directory}: expected no other writer, got {FILLING}; if that writer is dead, delete it."
            )
        _empty(directory, files_being_written(directory))
    try:
        write_file(filling, files[MANIFEST])
        sync_folder(directory)
        for name, data in files.items():
            if name != MANIFEST:
                write_file(directory / name, data)
        sync_folder(directory)
        filling.rename(directory / MANIFEST)
        sync_folder(directory)
    except BaseException:
        with suppress(OSError):
            _empty(directory, set(files))
        raise


def _empty(directory: Path, names: set[str]) -> None:
    """Delete what was written into the folder; the list of these files last."""
    for name in (MANIFEST, *sorted(names - {MANIFEST})):
        (directory / name).unlink(missing_ok=True)
    sync_folder(directory)
    (directory / FILLING).unlink(missing_ok=True)


@contextmanager
def _held(directory: Path, force: bool) -> Iterator[tuple[Place, int]]:
    """Lock an existing folder: only one exporter may write to it. The descriptor is -1 if there is none."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    descriptor = None
    while descriptor is None and check_place(directory, force) is not Place.NOTHING:
        descriptor = lock(directory)
        if descriptor is None:
            if time.monotonic() > deadline:
                raise ExportError(
                    f"bundle {directory}: expected it to be free, got another exporter's lock for "
                    f"{LOCK_TIMEOUT_S:g} s; end that one."
                )
            time.sleep(0.002)
    if descriptor is None:
        yield Place.NOTHING, -1
        return
    try:
        yield check_place(directory, force), descriptor
    finally:
        release(descriptor)


@contextmanager
def _sibling(directory: Path) -> Iterator[Path]:
    """A locked folder next to ``directory``; after the block the parent folder is synced, then this one is deleted.

    After an exchange it holds the old bundle, and after a crash that may be the only one.
    """
    with locked_folder(directory.parent, prefix_for(directory), 0o777) as folder:
        try:
            yield folder
        except BaseException:
            with suppress(OSError):
                sync_folder(directory.parent)
                delete(folder)
            raise
        try:
            sync_folder(directory.parent)
        except OSError as error:
            old = f", the old one next to it as {folder.name} until the next export" if os.path.lexists(folder) else ""
            raise ExportError(
                f"bundle {directory}: expected the disk to take its folder, got {error.strerror or error}; "
                f"the new bundle is there{old}."
            ) from error
        delete(folder)
