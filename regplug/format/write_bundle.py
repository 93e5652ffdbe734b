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
from regplug.format.folder import MANIFEST
from regplug.format.place import BUNDLE_FILES, FILLING, Place, check_place, files_being_written, mount_point
from regplug.format.promises import NO_EXCHANGE, lacks, weaker_promises_said
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

LOCK_TIMEOUT_S = 60.0  # another exporter holds the bundle for as long as it writes


def write_folder(directory: Path, files: Mapping[str, bytes], force: bool) -> None:
    """Write ``files`` as the folder ``directory``: all of it, or nothing.

    Written to a sibling folder first, synced, then renamed; a bundle that is there is exchanged in one step, and the
    user's files next to it are copied into the new one. It is deleted once the exchange has reached the disk. A folder
    without files of its own is filled, the manifest last. Where the file system lacks a call that this needs, the next
    best way is taken and one line is logged.

    Raises:
        ExportError: Something is there that is to be kept, or the system refuses.
    """
    with weaker_promises_said(f"bundle {directory}"):
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
    """Something came into being at the place just now: look again."""


def _write(directory: Path, files: Mapping[str, bytes], force: bool) -> None:
    if check_place(directory, force) is not Place.EMPTY:  # its parent may be closed to us
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
    """Write the sibling folder, and give it its name."""
    made = folder.stat()
    # closed to others meanwhile; what is made inside gets the group that it will keep
    change_mode(folder, 0o700 | (made.st_mode & stat.S_ISGID))
    for name, data in files.items():
        write_file(folder / name, data)
    change_mode(folder, stat.S_IMODE(made.st_mode))
    sync_folder(folder)
    try:
        folder.rename(directory)  # never replaces a folder that holds something
    except OSError as error:
        if os.path.lexists(directory):
            raise _CreatedConcurrently from error
        raise


def _replace(directory: Path, folder: Path, files: Mapping[str, bytes], old: os.stat_result) -> None:
    """Write the sibling folder, with the permissions of the old one and what is the user's in it, and exchange them."""
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
    """As an exchange, for file systems without: the old bundle is at the sibling's name afterwards.

    The new bundle has a name meanwhile by which the next writer finds it after a crash; see ``_finish_replacing``.
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
    """Put the new bundle in place where a writer died after it had taken the old one away."""
    for ready in stale(directory.parent, _ready_prefix(directory)):
        if (directory / MANIFEST).exists():
            delete(ready)
        else:
            with suppress(OSError):  # a folder that holds something is at the place: it may be the user's
                ready.rename(directory)
                sync_folder(directory.parent)


def _write_in_place_of(old: Path, new: Path, files: Mapping[str, bytes]) -> None:
    """Write a bundle's files with the permissions that they had, and those that a user put next to them as they are."""
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
    elif MANIFEST in there:  # a file of a new name gets no more than the manifest had, nor than the umask allows
        make_like(descriptor, there[MANIFEST], most=os.fstat(descriptor).st_mode)


def _fill(directory: Path, files: Mapping[str, bytes], descriptor: int) -> None:
    """Write into a folder that exists: it may be a mount point, or some process may work in it.

    Without its manifest it is no bundle, so that comes last. Its bytes are there before, under another name: they list
    what a writer leaves who dies.
    """
    filling = directory / FILLING
    if os.path.lexists(filling):
        if not is_abandoned(descriptor):
            raise ExportError(
                f"bundle {directory}: expected nobody to write there, got {FILLING}; if that writer is dead, delete it."
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
    """Delete what was written into the folder, last what says so."""
    for name in (MANIFEST, *sorted(names - {MANIFEST})):
        (directory / name).unlink(missing_ok=True)
    sync_folder(directory)
    (directory / FILLING).unlink(missing_ok=True)


@contextmanager
def _held(directory: Path, force: bool) -> Iterator[tuple[Place, int]]:
    """Lock the folder that is there: one exporter at a time writes to it. The descriptor is -1 where nothing is."""
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
    """A locked folder next to ``directory``; deleted afterwards, when the parent folder has reached the disk.

    After an exchange the old bundle is here, and after a crash it may be the only one.
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
