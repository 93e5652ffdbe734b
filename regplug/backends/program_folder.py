"""A temporary folder in which programs may be made and run, whatever ``TMPDIR`` is."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from regplug.errors import ExportError
from regplug.registry.cache_folder import cache_folder, check_ours

# some compilers are called by shell lines: no spaces, no quotes, no letters that a locale may lack
SAFE_PATH = re.compile(r"[A-Za-z0-9/._+@%=:,-]+")
OTHERS = ("/tmp", "/var/tmp")  # inside, a private folder with a random name is made


def program_folder() -> Path | None:
    """The temporary folder, or the first other one that may hold programs: the cache, ``/tmp``, ``/var/tmp``.

    None if there is none; ``why_not`` says what is wrong with the temporary folder.
    """
    return next((folder for folder in _candidates() if not why_not(folder)), None)


def folder_for_programs(owner: str) -> Path:
    """As ``program_folder``.

    Raises:
        ExportError: There is none.
    """
    if (found := program_folder()) is not None:
        return found
    given = Path(tempfile.gettempdir())
    raise ExportError(
        f"{owner}: expected a temporary folder in which programs may be made and run, got {given}, {why_not(given)}; "
        "set TMPDIR to another folder."
    )


def why_not(folder: Path) -> str:
    """Why no program may be made and run in a folder; empty if one may."""
    if not SAFE_PATH.fullmatch(str(folder)):
        return "whose path has other characters than compilers take"
    try:
        if os.statvfs(folder).f_flag & os.ST_NOEXEC:
            return "which is mounted noexec"
    except OSError as error:
        return f"which cannot be used: {error.strerror}"
    return "" if os.access(folder, os.W_OK | os.X_OK) else "which may not be written"


def _candidates() -> Iterator[Path]:
    yield Path(tempfile.gettempdir())
    with suppress(OSError):
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_ours(folder)
        yield folder.absolute()
    yield from map(Path, OTHERS)
