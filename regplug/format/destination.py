"""Checks the path that a bundle is written to: it may be nothing, a folder to fill, or a bundle to replace."""

from __future__ import annotations

import json
import os
import re
import stat
from enum import Enum
from pathlib import Path

from regplug.errors import ExportError
from regplug.format.folder import MANIFEST, RESERVED
from regplug.format.limits import MAX_MANIFEST
from regplug.format.working_directory import GONE, is_gone
from regplug.format.wrong_path import is_url

BUNDLE_FILES = re.compile(r"manifest\.json|weights\.safetensors|golden\.safetensors|program\.[A-Za-z0-9._-]+")
# files of git, hubs and file systems; a folder with only these counts as empty
IN_EMPTY_FOLDER = re.compile(r"README\.md|lost\+found|\..*")
# the manifest in a folder that is being filled; it lists the files being written
FILLING = ".manifest.json.regplug-filling"


class Place(Enum):
    """What is at the path."""

    NOTHING = "nothing"
    EMPTY = "a folder that counts as empty"
    BUNDLE = "a bundle to replace"


def absolute(directory: Path) -> Path:
    """The absolute path.

    Raises:
        ExportError: The working directory is gone.
    """
    if is_gone():
        raise ExportError(f"bundle {directory}: {GONE}.")
    return directory.absolute()


def check_place(directory: Path, force: bool) -> Place:
    """What is at the path, if a bundle may be written there.

    Raises:
        ExportError: Something is there that must be kept, or that cannot be replaced.
    """
    owner = f"bundle {directory}"
    check_outside_bundle(owner, directory)
    if not os.path.lexists(directory):
        if is_url(str(directory)):
            raise ExportError(f"{owner}: expected a folder of this machine, got a URL; export, then upload it.")
        return Place.NOTHING
    try:
        is_folder = directory.is_dir() and not directory.is_symlink()
        names = sorted(entry.name for entry in directory.iterdir()) if is_folder else None
    except OSError as error:
        raise ExportError(f"{owner}: cannot be read: {error.strerror}; use another folder.") from error
    if names is not None and all(map(IN_EMPTY_FOLDER.fullmatch, own_names(directory, names))):
        return Place.EMPTY
    if not force:
        raise ExportError(f"{owner}: exists and is kept; use force to replace it (--force), or another folder.")
    if names is None:
        link = directory.is_symlink()
        found = "a link; name the folder that it leads to" if link else "something else; remove it yourself"
        raise ExportError(f"{owner}: expected a folder to replace, got {found}.")
    _check_replaceable(directory, names)
    return Place.BUNDLE


def check_outside_bundle(owner: str, path: Path) -> None:
    """Refuse a path inside a bundle with a name reserved for bundles: it would make that bundle unreadable.

    Raises:
        ExportError: It is such a path.
    """
    if path.name.startswith(RESERVED) and "bundle_format" in _json_object(path.parent / MANIFEST):
        raise ExportError(
            f"{owner}: expected a place outside of bundles, got one inside {path.parent}, which could then no "
            "longer be read; use another."
        )


def own_names(directory: Path, names: list[str]) -> list[str]:
    """The names without those left by a writer that died while it filled the folder."""
    if FILLING not in names or MANIFEST in names:
        return names
    left = files_being_written(directory)
    return [name for name in names if name not in left]


def files_being_written(directory: Path) -> set[str]:
    """The files that the writer filling the folder has announced; it announces them before it writes any."""
    listed = _json_object(directory / FILLING).get("files")
    return {name for name in listed if BUNDLE_FILES.fullmatch(name)} if isinstance(listed, dict) else set()


def mount_point(directory: Path) -> ExportError:
    """The error for a bundle that is a mount point: its folder cannot be exchanged."""
    return ExportError(
        f"bundle {directory}: a mount point cannot be replaced in one step; export to a folder inside it, or delete "
        f"the old bundle first: rm {directory}/manifest.json, then its other files."
    )


def _check_replaceable(directory: Path, names: list[str]) -> None:
    owner = f"bundle {directory}"
    unknown = [name for name in names if not BUNDLE_FILES.fullmatch(name)]
    reserved = [name for name in unknown if name.startswith(RESERVED)]
    others = [name for name in unknown if not IN_EMPTY_FOLDER.fullmatch(name)]
    manifest = _json_object(directory / MANIFEST)
    # a web site has a manifest.json too; a damaged one with nothing foreign around it was a bundle's
    foreign = (others or manifest) and "bundle_format" not in manifest
    if reserved or MANIFEST not in names or foreign:
        found = ", ".join((reserved or others or names)[:3])
        raise ExportError(f"{owner}: expected a bundle to replace, got a folder with {found}.")
    if absolute(directory).is_mount():
        raise mount_point(directory)
    if _is_working_directory(directory):
        raise ExportError(
            f"{owner}: the working directory cannot be replaced, it would be gone; export from another one."
        )
    kept = [name for name in unknown if not stat.S_ISREG((directory / name).lstat().st_mode)]
    if kept:
        found = ", ".join(kept[:3])
        raise ExportError(f"{owner}: expected only files next to those of the bundle, got {found}; move it away.")


def _is_working_directory(directory: Path) -> bool:
    return not is_gone() and directory.samefile(os.curdir)


def _json_object(path: Path) -> dict[str, object]:
    """The JSON object in a regular file; empty if there is none."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > MAX_MANIFEST:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
