"""Keeps files in the user's cache folder under a digest of what determines them; safe with several processes.

An entry is one safetensors file, ``KEY-SHA256.safetensors``: the sha256 of what determines it, and that of its bytes.
It is written under another name and renamed: a reader sees all of it or nothing, and damage is always noticed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regplug.errors import BundleError
from regplug.format.durable import write_all
from regplug.format.safetensors_header import read_header
from regplug.format.temporary import delete, locked_file, stale
from regplug.format.weights import read_metadata, save_tensors
from regplug.registry.cache_folder import cache_folder as cache_folder
from regplug.registry.cache_folder import check_ours, read_regular

ENTRY = re.compile(r"([0-9a-f]{64})-([0-9a-f]{64})\.safetensors")
DAY_S = 86_400.0
WRITING = ".entry.writing-"
LOCK = ".lock"
INDUCTOR = "inductor"  # the folder where torch.compile keeps its libraries

log = logging.getLogger("regplug")


@dataclass(frozen=True)
class CacheEntry:
    """One entry as ``regplug cache`` shows it; ``description`` is None if it is damaged."""

    path: Path
    size: int
    last_used: float
    description: Mapping[str, Any] | None


def key_of(determined_by: Any) -> str:
    """The key of files that these values determine: the sha256 of the values as sorted JSON."""
    return hashlib.sha256(json.dumps(determined_by, sort_keys=True).encode()).hexdigest()


def find(key: str) -> tuple[dict[str, Any], dict[str, bytes]] | None:
    """The description and the files kept under a key; None if there are none, or they are damaged."""
    try:
        check_ours(cache_folder())
        paths = [path for path, found in _entries() if found == key]
    except OSError:
        return None
    for path in paths:
        entry = _read(path)
        if entry is not None and entry[0].get("key") == key:
            with suppress(OSError):
                os.utime(path)  # the time of last use, for prune
            return entry
        with suppress(OSError):  # damaged, or under another entry's name: never used, and made again
            path.unlink()
    return None


def keep(key: str, description: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Keep files under a key. If the cache cannot be written, one line is logged and nothing fails."""
    import torch

    tensors = {name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in files.items()}
    data = save_tensors(tensors, {"key": key, **description})
    folder: Path | str = "folder"
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_ours(folder)
        place = folder / f"{key}-{hashlib.sha256(data).hexdigest()}.safetensors"
        _sweep(folder)
        with locked_file(folder, WRITING, 0o600) as (descriptor, written):
            write_all(descriptor, data)
            written.replace(place)
    except OSError as error:
        log.warning("cache %s: not written: %s; the next export compiles again.", folder, error.strerror or error)


@contextmanager
def sole_maker(key: str) -> Iterator[None]:
    """Let one process make the files of a key while others wait; no lock if the cache cannot be written."""
    with ExitStack() as stack:
        with suppress(OSError):
            folder = cache_folder()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_ours(folder)
            lock = stack.enter_context((folder / LOCK).open("wb"))
            fcntl.lockf(lock, fcntl.LOCK_EX, 1, int(key[:15], 16))  # one byte of one file for each key
        yield


def entries() -> list[CacheEntry]:
    """All entries, the most recently used first.

    Raises:
        PermissionError: The folder is not private to this user, so nothing in it is read.
    """
    found = []
    with suppress(FileNotFoundError):
        check_ours(cache_folder())
        for path, _ in _entries():
            with suppress(FileNotFoundError):  # another process prunes
                status = path.stat()
                entry = _read(path)
                found.append(CacheEntry(path, status.st_size, status.st_mtime, entry and entry[0]))
    return sorted(found, key=lambda one: -one.last_used)


def prune(days: float) -> list[CacheEntry]:
    """Delete entries that are damaged or were not used for so many days, and what killed processes left half written.

    The name caches, ``names-*.json``, and what torch.compile keeps are deleted too if they are as old.

    Returns:
        The entries that were deleted.

    Raises:
        PermissionError: The folder is not private to this user, so nothing in it is deleted.
    """
    now = time.time()
    old = [one for one in entries() if one.description is None or now - one.last_used > days * DAY_S]
    for one in old:
        one.path.unlink(missing_ok=True)
    _sweep(cache_folder())
    for pattern, longest in ((".*.writing", DAY_S), ("names-*.json", days * DAY_S), (INDUCTOR, days * DAY_S)):
        for path in cache_folder().glob(pattern):
            with suppress(FileNotFoundError):
                if now - path.stat().st_mtime > longest:
                    delete(path)
    return old


def _sweep(folder: Path) -> None:
    with suppress(FileNotFoundError):  # no folder, nothing left in it
        for path in stale(folder, WRITING):
            delete(path)


def _entries() -> Iterator[tuple[Path, str]]:
    for path in sorted(cache_folder().iterdir()):
        if match := ENTRY.fullmatch(path.name):
            yield path, match[1]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, bytes]] | None:
    match = ENTRY.fullmatch(path.name)
    try:
        data = read_regular(path)
        if match is None or hashlib.sha256(data).hexdigest() != match[2]:
            return None
        description = read_metadata(str(path), data)
        tensors, _ = read_header(str(path), data)
    except (OSError, BundleError):
        return None
    begin = 8 + int.from_bytes(data[:8], "little")
    return description, {name: data[begin + one.begin : begin + one.end] for name, one in tensors.items()}
