"""Keeps samples' tokens on the disk: shards while they are read, then one file. Imports no torch at the top.

A folder for each key, ``tokens/KEY`` in the cache folder, has ``about.json``, and either shards,
``shard-NUMBER-SHA256.safetensors``, or the whole, ``samples-SHA256.safetensors``. Each file is written under another
name, synced and renamed: a reader sees all of it or nothing, after a crash too, and damage is noticed by its digest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regplug.commands.rank.reading.source import CHUNK
from regplug.errors import ExportError
from regplug.format.durable import sync_folder, write_all, write_fully
from regplug.format.temporary import delete, flock, locked_file, release, stale
from regplug.registry.cache_folder import cache_folder, check_ours, read_regular

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1  # of the files; another number is another key
FOLDER, ABOUT, LOCK, WRITING = "tokens", "about.json", ".lock", ".writing-"
KEY = re.compile(r"[0-9a-f]{64}")
SHARD = re.compile(r"shard-([0-9]{8})-([0-9a-f]{64})\.safetensors")
WHOLE = re.compile(r"samples-([0-9a-f]{64})\.safetensors")
MAX_ABOUT = 1 << 20  # bytes
DAY_S = 86_400.0
LOCK_POLL_S = 0.2
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class TokensEntry:
    """The tokens of one data set as ``regplug cache`` shows them; ``about`` is None if that is damaged.

    Args:
        path: The folder.
        size: Bytes of its files.
        last_used: When it was read last, in seconds since 1970.
        whole: Whether all samples were read.
        about: What the tokens are of.
    """

    path: Path
    size: int
    last_used: float
    whole: bool
    about: Mapping[str, Any] | None


def tokens_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """Where tokens are kept: in the given cache folder, else in regplug's own."""
    return (cache_folder() if cache is None else Path(cache)) / FOLDER


def key_of(determined_by: Mapping[str, Any]) -> str:
    """The sha256 of what determines the tokens, as sorted JSON."""
    text = json.dumps({"format": FORMAT, **determined_by}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class TokenFolder:
    """The files of one key.

    Args:
        folder: Where; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def locked(self, say: Callable[[str], None] = lambda step: None) -> Iterator[None]:
        """Make the folder, and let one process use it while others wait, and say so.

        Raises:
            ExportError: The folder cannot be made or is not this user's alone.
        """
        with self._reported():
            descriptor = self._lock(say)
        try:
            for path in stale(self.folder, WRITING):
                delete(path)
            yield
        finally:
            release(descriptor)

    def _lock(self, say: Callable[[str], None]) -> int:
        while True:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_ours(self.folder)
            descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _wait_for_lock(descriptor, say)
                if os.path.samestat(os.fstat(descriptor), (self.folder / LOCK).lstat()):
                    return descriptor
            except FileNotFoundError:  # the folder was deleted while this process waited
                pass
            except BaseException:
                release(descriptor)
                raise
            release(descriptor)

    def about(self) -> dict[str, Any] | None:
        """What ``write_about`` wrote; None if it is missing or damaged."""
        try:
            found = json.loads(read_regular(self.folder / ABOUT, MAX_ABOUT))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write_about(self, about: Mapping[str, Any]) -> None:
        """Keep what the tokens are of."""
        with self._reported():
            self._write(ABOUT, json.dumps(about, sort_keys=True, indent=1).encode())

    def whole(self) -> Path | None:
        """The file with all samples; None if there is none, or it is damaged: then it is deleted."""
        for path in self._matching(WHOLE):
            if _digest(path) == path.name.partition("-")[2].partition(".")[0]:
                with suppress(OSError):
                    os.utime(path)  # the time of last use, for prune
                    for shard in self._matching(SHARD):  # a process died after it had joined them
                        shard.unlink()
                return path
            path.unlink()
        return None

    def shards(self) -> list[Path]:
        """The shards from the first one on without a gap; damaged ones, and those after them, are deleted."""
        found: list[Path] = []
        is_gap = False
        for path in self._matching(SHARD):
            match = SHARD.fullmatch(path.name)
            number, digest = (match[1], match[2]) if match else ("", "")
            is_gap = is_gap or int(number) != len(found) or _digest(path) != digest
            if is_gap:
                path.unlink()
            else:
                found.append(path)
        return found

    def add_shard(self, number: int, parts: Mapping[str, Tensor]) -> Path:
        """Keep the tokens of the next samples.

        Raises:
            ExportError: The disk is full, or the system refuses; the finished shards are kept.
        """
        from safetensors.torch import save

        data = save({name: part.contiguous() for name, part in parts.items()})
        with self._reported():
            return self._write(f"shard-{number:08d}-{hashlib.sha256(data).hexdigest()}.safetensors", data)

    def join(self, shards: list[Path]) -> Path:
        """Make the file with all samples of all shards, and delete these.

        Raises:
            ExportError: The disk is full, or the system refuses; the finished shards are kept.
        """
        from regplug.commands.rank.reading.token_file import joined

        digest = hashlib.sha256()
        with self._reported():
            with locked_file(self.folder, WRITING, 0o600) as (descriptor, written):
                for data in joined(shards):
                    digest.update(data)
                    write_fully(descriptor, data)
                write_all(descriptor, b"")  # sync
                place = self.folder / f"samples-{digest.hexdigest()}.safetensors"
                written.replace(place)
            sync_folder(self.folder)
        for path in shards:
            with suppress(OSError):
                path.unlink()
        return place

    def _write(self, name: str, data: bytes) -> Path:
        place = self.folder / name
        with locked_file(self.folder, WRITING, 0o600) as (descriptor, written):
            write_all(descriptor, data)
            written.replace(place)
        sync_folder(self.folder)
        return place

    def _matching(self, pattern: re.Pattern[str]) -> list[Path]:
        with suppress(OSError):
            return sorted(path for path in self.folder.iterdir() if pattern.fullmatch(path.name))
        return []

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = len(self._matching(SHARD))
            todo = "free space there, or use --cache with another folder" if error.errno in FULL else "see --cache"
            raise ExportError(
                f"cache {self.folder}: cannot be written: {error.strerror or error}; shards finished and kept: {kept}; "
                f"{todo}, and run the same command again."
            ) from error


def entries() -> list[TokensEntry]:
    """All data sets whose tokens are in regplug's cache, the most recently used first.

    Raises:
        PermissionError: The folder is not private to this user.
    """
    found = []
    with suppress(FileNotFoundError):
        check_ours(cache_folder())
        for path in sorted(tokens_folder().iterdir()):
            if not KEY.fullmatch(path.name):
                continue
            files = [one for one in path.iterdir() if one.is_file()]
            whole = any(WHOLE.fullmatch(one.name) for one in files)
            times = [one.stat().st_mtime for one in files] or [path.stat().st_mtime]
            about = TokenFolder(path).about()
            found.append(TokensEntry(path, sum(one.stat().st_size for one in files), max(times), whole, about))
    return sorted(found, key=lambda one: -one.last_used)


def prune(days: float) -> list[TokensEntry]:
    """Delete the tokens that were not used for so many days, except those that a process is reading now.

    Returns:
        What was deleted.

    Raises:
        PermissionError: The folder is not private to this user.
    """
    now = time.time()
    gone = []
    for one in entries():
        if one.about is not None and now - one.last_used <= days * DAY_S:
            continue
        with suppress(OSError):  # BlockingIOError: in use
            descriptor = os.open(one.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                flock(descriptor)
                delete(one.path)
                gone.append(one)
            finally:
                release(descriptor)
    return gone


def _wait_for_lock(descriptor: int, say: Callable[[str], None]) -> None:
    is_said = False
    while True:
        try:
            flock(descriptor)
            return
        except BlockingIOError:
            if not is_said:
                say("waiting for another process, which reads the same data")
            is_said = True
            time.sleep(LOCK_POLL_S)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(CHUNK):
                digest.update(part)
    except OSError:
        return ""
    return digest.hexdigest()
