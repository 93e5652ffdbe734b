"""Puts a bundle's folder in place in one step: the old or the new stands there whole, come what may."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from regplug.durable import exchange, made_folders, make_like, opened, sync_folder, write_file
from regplug.errors import ExportError
from regplug.folder import MANIFEST
from regplug.temporary import delete, lock, locked_folder, prefix_for, release, sweep

# what stands in a bundle; a folder with anything else in it is somebody's work and is never replaced
BUNDLE_FILES = re.compile(r"manifest\.json|weights\.safetensors|golden\.safetensors|program\.[A-Za-z0-9._-]+")
BESIDE_BUNDLE = re.compile(r"README\.md|\..*")
PATIENCE = 60.0  # seconds; another exporter holds the bundle for as long as it writes


def check_place(directory: Path, force: bool) -> None:
    """Refuse a place where something stands, unless it is a bundle and is to be replaced.

    Raises:
        ExportError: Something stands there that is to be kept.
    """
    if _is_taken(directory, force):
        _check_names(directory)


def _is_taken(directory: Path, force: bool) -> bool:
    owner = f"bundle {directory}"
    if not os.path.lexists(directory):
        return False
    if not force:
        raise ExportError(f"{owner}: exists and is kept; use force to replace it (--force), or another folder.")
    if directory.is_symlink() or not directory.is_dir():
        raise ExportError(f"{owner}: expected a folder to replace, got something else; remove it yourself.")
    return True


def _check_names(directory: Path) -> None:
    owner = f"bundle {directory}"
    names = sorted(entry.name for entry in directory.iterdir())
    foreign = [name for name in names if not (BUNDLE_FILES.fullmatch(name) or BESIDE_BUNDLE.fullmatch(name))]
    if foreign or (names and MANIFEST not in names):
        raise ExportError(
            f"{owner}: expected a bundle to replace, got a folder with {', '.join((foreign or names)[:3])}."
        )
    kept = [name for name in names if BESIDE_BUNDLE.fullmatch(name)]
    others = [name for name in kept if not stat.S_ISREG((directory / name).lstat().st_mode)]
    if others:
        raise ExportError(f"{owner}: expected only files beside the bundle, got {', '.join(others)}; move it away.")


def write_folder(directory: Path, files: Mapping[str, bytes], force: bool) -> None:
    """Write ``files`` as the folder ``directory``: all of it, or nothing.

    Written to a sibling folder first, synced, then renamed; a bundle that stands there is exchanged in one step, and
    the dotfiles and README.md beside it are carried over. It is deleted once the exchange has reached the disk.

    Raises:
        ExportError: Something stands there that is to be kept, or the system refuses.
    """
    try:
        with made_folders(directory.parent):
            sweep(directory)
            while True:
                with suppress(_TakenMeanwhile):
                    _write(directory, files, force)
                    break
    except OSError as error:
        raise ExportError(
            f"bundle {directory}: cannot be written: {error.strerror or error}; nothing was changed."
        ) from error


class _TakenMeanwhile(Exception):
    """Something came into being at the place just now: look again."""


def _write(directory: Path, files: Mapping[str, bytes], force: bool) -> None:
    with _held(directory, force) as old, _sibling(directory) as folder:
        made = folder.stat()
        # closed to others meanwhile; what is made inside gets the group that it will keep
        folder.chmod(0o700 | ((old or made).st_mode & stat.S_ISGID))
        if old is None:
            for name, data in files.items():
                write_file(folder / name, data)
            folder.chmod(stat.S_IMODE(made.st_mode))
            sync_folder(folder)
            try:
                folder.rename(directory)  # never replaces a folder that holds something
            except OSError as error:
                if os.path.lexists(directory):
                    raise _TakenMeanwhile from error
                raise
        else:
            _write_in_place_of(directory, folder, files)
            with opened(folder) as descriptor:
                make_like(descriptor, old)
            sync_folder(folder)
            exchange(folder, directory)


def _write_in_place_of(old: Path, new: Path, files: Mapping[str, bytes]) -> None:
    """Write a bundle's files with the permissions that they had, and those that a user put beside them as they are."""
    there = {entry.name: entry.lstat() for entry in old.iterdir()}
    for name, data in files.items():
        write_file(new / name, data, partial(_give_permissions, name, there))
    for name, status in there.items():
        if BESIDE_BUNDLE.fullmatch(name):
            with opened(old / name) as descriptor:
                data = b"".join(iter(partial(os.read, descriptor, 1 << 20), b""))
            write_file(new / name, data, partial(_give_permissions, name, there))
            os.utime(new / name, ns=(status.st_atime_ns, status.st_mtime_ns))


def _give_permissions(name: str, there: Mapping[str, os.stat_result], descriptor: int) -> None:
    if name in there:
        make_like(descriptor, there[name])
    elif MANIFEST in there:  # a file of a new name gets no more than the manifest had, nor than the umask allows
        make_like(descriptor, there[MANIFEST], most=os.fstat(descriptor).st_mode)


@contextmanager
def _held(directory: Path, force: bool) -> Iterator[os.stat_result | None]:
    """Lock the bundle that is to be replaced: one exporter at a time does. None where nothing stands."""
    deadline = time.monotonic() + PATIENCE
    descriptor = None
    while descriptor is None and _is_taken(directory, force):
        descriptor = lock(directory)
        if descriptor is None:
            if time.monotonic() > deadline:
                raise ExportError(
                    f"bundle {directory}: expected it to be free, got another exporter's lock for {PATIENCE:g} s; "
                    "end that one."
                )
            time.sleep(0.002)
    if descriptor is None:
        yield None
        return
    try:
        _check_names(directory)
        yield os.fstat(descriptor)
    finally:
        release(descriptor)


@contextmanager
def _sibling(directory: Path) -> Iterator[Path]:
    """A locked folder beside ``directory``; deleted afterwards, when the parent folder has reached the disk.

    After an exchange the old bundle stands here, and after a crash it may be the only one.
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
            beside = (
                f", the old one beside it as {folder.name} until the next export" if os.path.lexists(folder) else ""
            )
            raise ExportError(
                f"bundle {directory}: expected the disk to take its folder, got {error.strerror or error}; "
                f"the new bundle stands there{beside}."
            ) from error
        delete(folder)
