"""The files that keep each training's scores: where they are, how many, and which may go. Imports no torch."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from regplug.registry.cache_folder import cache_folder, check_ours

DAY_S = 86_400.0


def scores_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """Where the scores are: in regplug's cache folder, or in another one."""
    return (cache_folder() if cache is None else Path(cache)) / "scores"


def score_files() -> list[Path]:
    """The files in regplug's cache.

    Raises:
        PermissionError: The folder is not private to this user.
    """
    try:
        check_ours(cache_folder())
        return sorted(scores_folder().glob("*.safetensors"))
    except FileNotFoundError:
        return []


def prune_scores(days: float) -> list[tuple[str, int]]:
    """Delete the scores that were not used for so many days; the name and size of each."""
    gone = []
    for path in score_files():
        with suppress(FileNotFoundError):  # another process was faster
            status = path.stat()
            if time.time() - status.st_mtime > days * DAY_S:
                path.unlink()
                gone.append((path.name, status.st_size))
    return gone
