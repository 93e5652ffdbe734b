"""Writes files outside bundles, each atomically: readers see the old or the new file, even after a crash."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from regplug.errors import ExportError
from regplug.format.destination import check_outside_bundle
from regplug.format.durable import made_folders, make_like, rename_to_new, sync_folder, write_all
from regplug.format.filesystem_support import log_weaker_promises
from regplug.format.temporary import locked_file, prefix_for, sweep
from regplug.format.wrong_path import is_url


def check_file_place(path: Path, force: bool) -> None:
    """Refuse a path that exists, unless it is a regular file and ``force`` is given.

    Raises:
        ExportError: Something is there that must be kept, or the file would make the bundle around it unreadable.
    """
    check_outside_bundle(f"file {path}", path)
    if not os.path.lexists(path):
        if is_url(str(path)):
            raise ExportError(f"file {path}: expected a file of this machine, got a URL; write one, then upload it.")
        return
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ExportError(f"file {path}: expected a file or nothing there, got something else; remove it yourself.")
    if not force:
        raise ExportError(f"file {path}: exists and is kept; use force to replace it (--force), or another name.")


def write_files(files: Mapping[Path, bytes], force: bool) -> None:
    """Write files, each atomically; none is put in place before all are on the disk.

    A new file takes the permissions of the one it replaces.

    Raises:
        ExportError: Something is there that must be kept, or the system refuses.
    """
    placed: list[Path] = []
    path = None
    try:
        with log_weaker_promises(f"file {next(iter(files), '')}"), ExitStack() as stack:
            temporary = {}
            for path, data in files.items():
                stack.enter_context(made_folders(path.parent))
                temporary[path] = _write_temporary(stack, path, data)
            for path in files:
                check_file_place(path, force)
            for path in files:
                _put_in_place(temporary[path], path, force)
                placed.append(path)
            for path in files:
                sync_folder(path.parent)
    except OSError as error:
        state = "nothing was changed" if not placed else f"already written: {', '.join(map(str, placed))}"
        raise ExportError(f"file {path}: cannot be written: {error.strerror or error}; {state}.") from error


def _write_temporary(stack: ExitStack, path: Path, data: bytes) -> Path:
    sweep(path)
    try:
        old = path.lstat()
    except FileNotFoundError:
        old = None
    # closed to other users from the start if it replaces a file: that file may be secret
    descriptor, temporary = stack.enter_context(locked_file(path.parent, prefix_for(path), 0o600 if old else 0o666))
    if old:
        make_like(descriptor, old)
    write_all(descriptor, data)
    return temporary


def _put_in_place(temporary: Path, path: Path, force: bool) -> None:
    if not force:
        try:
            rename_to_new(temporary, path)
            return
        except FileExistsError:
            check_file_place(path, force)
    temporary.replace(path)
