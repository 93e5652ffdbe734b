"""Puts a bundle's folder or a lone file in place in one step: the old or the new stands there whole, come what may."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from regplug.errors import ExportError
from regplug.folder import MANIFEST

AT_FDCWD = -100
RENAME_EXCHANGE = 2
# what stands in a bundle; a folder with anything else in it is somebody's work and is never replaced
BUNDLE_FILES = re.compile(r"manifest\.json|weights\.safetensors|golden\.safetensors|program\.[A-Za-z0-9._-]+")
BESIDE_BUNDLE = re.compile(r"README\.md|\..*")


def check_place(directory: Path, force: bool) -> None:
    """Refuse a place where something stands, unless it is a bundle and is to be replaced.

    Raises:
        ExportError: Something stands there that is to be kept.
    """
    owner = f"bundle {directory}"
    if not os.path.lexists(directory):
        return
    if not force:
        raise ExportError(f"{owner}: exists and is kept; use force to replace it (--force), or another folder.")
    if directory.is_symlink() or not directory.is_dir():
        raise ExportError(f"{owner}: expected a folder to replace, got something else; remove it yourself.")
    names = sorted(entry.name for entry in directory.iterdir())
    foreign = [name for name in names if not (BUNDLE_FILES.fullmatch(name) or BESIDE_BUNDLE.fullmatch(name))]
    if foreign or (names and MANIFEST not in names):
        raise ExportError(
            f"{owner}: expected a bundle to replace, got a folder with {', '.join((foreign or names)[:3])}."
        )
    kept = [name for name in names if BESIDE_BUNDLE.fullmatch(name)]
    folders = [name for name in kept if (directory / name).is_dir() or (directory / name).is_symlink()]
    if folders:
        raise ExportError(f"{owner}: expected only files beside the bundle, got {', '.join(folders)}; move it away.")


def write_folder(directory: Path, files: Mapping[str, bytes], force: bool) -> None:
    """Write ``files`` as the folder ``directory``: all of it, or nothing.

    Written to a sibling folder first, synced, then renamed; a bundle that stands there is exchanged in one step, and
    the dotfiles and README.md beside it are carried over.

    Raises:
        ExportError: Something stands there that is to be kept, or the system refuses; nothing has changed then.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        with _sibling(directory) as folder:
            for name, data in files.items():
                _write_file(folder / name, data)
            check_place(directory, force)  # once more: it may have come into being since
            if directory.exists():
                _carry_over(directory, folder)
            _sync(folder)
            _put_in_place(folder, directory, force)
    except OSError as error:
        raise ExportError(
            f"bundle {directory}: cannot be written: {error.strerror or error}; nothing was changed."
        ) from error
    with suppress(OSError):  # it stands there whole; not every file system syncs a folder
        _sync(directory.parent)


def check_file_place(path: Path, force: bool) -> None:
    """Refuse a place where something stands, unless it is a regular file and is to be replaced.

    Raises:
        ExportError: Something stands there that is to be kept.
    """
    if not os.path.lexists(path):
        return
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ExportError(f"file {path}: expected a file or nothing there, got something else; remove it yourself.")
    if not force:
        raise ExportError(f"file {path}: exists and is kept; use force to replace it (--force), or another name.")


def write_files(files: Mapping[Path, bytes], force: bool) -> None:
    """Write lone files, each put in place in one step, and none of them before all are on the disk.

    Raises:
        ExportError: Something stands at a place and is to be kept, or the system refuses.
    """
    written: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            written[path] = path.parent / f".{path.name}.regplug-{secrets.token_hex(6)}"
            _write_file(written[path], data)
        for path in files:
            check_file_place(path, force)
        for path, beside in written.items():
            _put_file(beside, path, force)
    except OSError as error:
        raise ExportError(f"file {path}: cannot be written: {error.strerror or error}.") from error
    finally:
        for beside in written.values():
            beside.unlink(missing_ok=True)
    with suppress(OSError):  # they stand there whole; not every file system syncs a folder
        for folder in {path.parent for path in files}:
            _sync(folder)


def _put_file(beside: Path, path: Path, force: bool) -> None:
    if not force:
        try:
            path.hardlink_to(beside)  # unlike a rename, never replaces a file that came just now
            return
        except FileExistsError:
            check_file_place(path, force)
        except OSError:  # no hard links on this file system
            check_file_place(path, force)
    beside.replace(path)


def _put_in_place(folder: Path, directory: Path, force: bool) -> None:
    if not (force and directory.exists()):
        folder.rename(directory)  # never replaces a folder that holds something, one that came just now included
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise ExportError(
            f"bundle {directory}: this system cannot exchange two folders in one step; remove the old one."
        )
    if libc.renameat2(AT_FDCWD, os.fsencode(folder), AT_FDCWD, os.fsencode(directory), RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, f"exchange with the old bundle failed ({os.strerror(code)})")


@contextmanager
def _sibling(directory: Path) -> Iterator[Path]:
    """A locked temporary folder beside ``directory``; what stands under its name afterwards is deleted."""
    while True:
        folder = directory.parent / f".{directory.name}.regplug-{secrets.token_hex(6)}"
        folder.mkdir()
        if (descriptor := _locked(folder)) is not None:
            break  # else another exporter took it for a stale one
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # after an exchange the old bundle stands here
        os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None where another holds it, or has deleted the folder meanwhile."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists():
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def _sweep(directory: Path) -> None:
    """Delete what killed exporters left beside ``directory``: the lock of a living one is held."""
    prefix = f".{directory.name}.regplug-"
    for stale in [entry for entry in directory.parent.iterdir() if entry.name.startswith(prefix)]:
        try:
            descriptor = os.open(stale, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # gone already, or no folder of ours
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(stale, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _carry_over(old: Path, new: Path) -> None:
    for entry in old.iterdir():
        if BESIDE_BUNDLE.fullmatch(entry.name):
            shutil.copy2(entry, new / entry.name, follow_symlinks=False)


def _write_file(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
