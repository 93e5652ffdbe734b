"""The cache of compiled programs that all test processes and later runs share."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import regplug

ROOT = Path(__file__).resolve().parents[2]
WEEK_S = 604_800.0


def program_cache() -> Path:
    """A folder in build/ for compiled programs, named by what decides how they are made."""
    tools = [version("torch"), sys.version, os.path.realpath(shutil.which("c++") or "")]
    made_by = hashlib.sha256("\n".join(tools).encode())
    package = Path(regplug.__file__).parent
    for folder in ("backends", "format"):
        for path in sorted((package / folder).glob("*.py")):
            made_by.update(path.read_bytes())
    caches = ROOT / "build" / "test-cache"
    kept = caches / made_by.hexdigest()[:16]
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.utime(kept)
    for other in caches.iterdir():
        with suppress(FileNotFoundError):  # another process deletes it
            if time.time() - other.stat().st_mtime > WEEK_S:
                shutil.rmtree(other)
    for names in kept.glob("names-*.json"):  # of plugins that earlier runs installed
        names.unlink(missing_ok=True)
    return kept
