"""Puts files that stand in no bundle in place, each in one step: the old or the new stands there whole."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from regplug.errors import ExportError
from regplug.format.durable import made_folders, make_like, rename_to_new, sync_folder, write_all
from regplug.format.mistaken import is_url
from regplug.format.place import check_outside_bundle
from regplug.format.promises import weaker_promises_said
from regplug.format.temporary import locked_file, prefix_for, sweep


def check_file_place(path: Path, force: bool) -> None:
    """Refuse a place where something stands, unless it is a regular file and is to be replaced.

    Raises:
        ExportError: Something stands there that is to be kept, or a bundle around it would no longer be read.
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
    """Write lone files, each put in place in one step, and none of them before all are on the disk.

    A file that is replaced gives its permissions to the new one.

    Raises:
        ExportError: Something stands at a place and is to be kept, or the system refuses.
    """
    placed: list[Path] = []
    path = None
    try:
        with weaker_promises_said(f"file {next(iter(files), '')}"), ExitStack() as stack:
            beside = {}
            for path, data in files.items():
                stack.enter_context(made_folders(path.parent))
                beside[path] = _written_beside(stack, path, data)
            for path in files:
                check_file_place(path, force)
            for path in files:
                _put(beside[path], path, force)
                placed.append(path)
            for path in files:
                sync_folder(path.parent)
    except OSError as error:
        told = "nothing was changed" if not placed else f"written before: {', '.join(map(str, placed))}"
        raise ExportError(f"file {path}: cannot be written: {error.strerror or error}; {told}.") from error


def _written_beside(stack: ExitStack, path: Path, data: bytes) -> Path:
    sweep(path)
    try:
        old = path.lstat()
    except FileNotFoundError:
        old = None
    # open to nobody else from the start where it takes the place of a file: that may be secret
    descriptor, beside = stack.enter_context(locked_file(path.parent, prefix_for(path), 0o600 if old else 0o666))
    if old:
        make_like(descriptor, old)
    write_all(descriptor, data)
    return beside


def _put(beside: Path, path: Path, force: bool) -> None:
    if not force:
        try:
            rename_to_new(beside, path)
            return
        except FileExistsError:
            check_file_place(path, force)
    beside.replace(path)
