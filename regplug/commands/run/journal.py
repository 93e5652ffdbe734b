"""The journal of an output folder: one JSON line for each thing that is done. What it proves is not done again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regplug.commands.run.journal_lines import check_line
from regplug.errors import SpecError
from regplug.format.durable import sync_folder, write_all
from regplug.format.temporary import flock

NAME = "_regplug_run.jsonl"  # readers of folders skip names that begin with _
SCHEMA = "regplug.run/1"
CHUNK = 1 << 20


@dataclass
class Record:
    """What a journal says.

    Args:
        recipe: What decides the results; None in a new journal.
        done: For each unit with results, its line.
        failed: For each unit of the last run that failed, its line.
        planned: The names of the last run's units, what their files end in, and the number of rows; None if it ended
            before it knew. Their files may exist without a line: the run may have died in between.
    """

    recipe: Mapping[str, Any] | None = None
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)
    planned: dict[str, Any] | None = None

    def unproven(self) -> list[str]:
        """The files of planned units that no line proves."""
        planned = self.planned or {"names": [], "suffix": ""}
        return [name + planned["suffix"] for name in planned["names"] if name not in self.done]

    def follow(self, line: Mapping[str, Any]) -> None:
        """Change it by one line."""
        if "recipe" in line:
            self.recipe = line["recipe"]
        elif "planned" in line:
            self.planned = line["planned"]
            self.failed = {name: one for name, one in self.failed.items() if name in set(line["planned"]["names"])}
        elif "done" in line:
            self.failed.pop(line["done"], None)
            self.done[line["done"]] = dict(line)
        elif "failed" in line:
            self.failed[line["failed"]] = dict(line)
        elif "removed" in line:
            self.done.pop(line["removed"], None)
            self.failed.pop(line["removed"], None)


class Journal:
    """A journal that is open for one run.

    Args:
        path: The file.
        descriptor: Of the file, locked.
        record: What it says.
    """

    def __init__(self, path: Path, descriptor: int, record: Record) -> None:
        self._path, self._descriptor = path, descriptor
        self.record = record

    def add(self, **line: Any) -> None:
        """Append a line; it is on the disk on return.

        Raises:
            OSError: It cannot be written; nothing of it is left.
        """
        length = os.fstat(self._descriptor).st_size
        try:
            write_all(self._descriptor, (json.dumps(line) + "\n").encode())
        except OSError as error:
            with suppress(OSError):  # a cut last line is ignored
                os.ftruncate(self._descriptor, length)
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self.record.follow(line)


@contextmanager
def open_journal(output: Path) -> Iterator[Journal]:
    """The journal of a folder, locked; the folder is made if it does not exist.

    Raises:
        SpecError: Another run works in the folder, or it has files and no journal.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise SpecError(f"output {output}: expected a folder, got a file.") from error
    path = output / NAME
    if not path.exists() and any(one.name != NAME for one in output.iterdir()):
        raise SpecError(f"output {output}: expected an empty folder or one of an earlier run, got a folder with files.")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        try:
            flock(descriptor)
        except BlockingIOError:
            raise SpecError(f"output {output}: expected no other run in this folder, got one that works now.") from None
        record, length = _read(path)
        if length < os.fstat(descriptor).st_size:
            os.ftruncate(descriptor, length)  # a line that a crash cut
        sync_folder(output)
        yield Journal(path, descriptor, record)
    finally:
        os.close(descriptor)


def read_journal(output: Path) -> Record:
    """What a folder's journal says; a run may work in it meanwhile.

    Raises:
        SpecError: It has none.
    """
    path = output / NAME
    if not path.is_file():
        raise SpecError(f"output {output}: expected a folder that `regplug run` has written into, got none.")
    return _read(path)[0]


def _read(path: Path) -> tuple[Record, int]:
    """What the whole lines say, and their length in bytes."""
    record, length = Record(), 0
    data = path.read_bytes()
    for number, line in enumerate(data.split(b"\n")[:-1], 1):  # what follows the last one was cut by a crash
        try:
            value = json.loads(line)
            check_line(value, SCHEMA if number == 1 else None)
        except (ValueError, RecursionError) as error:
            raise SpecError(
                f"journal {path}: line {number}: expected JSON of {SCHEMA}, got {error}; delete the line if it is not "
                "about a recipe, and its results are made again."
            ) from error
        record.follow(value)
        length += len(line) + 1
    return record, length


def is_proven(path: Path, line: Mapping[str, Any]) -> bool:
    """Whether a unit's results are those that its line describes. The file is read only if its time has changed."""
    try:
        status = path.stat()
    except OSError:
        return False
    if status.st_size != line["size"]:
        return False
    return bool(status.st_mtime_ns == line["mtime_ns"] or sha256_of(path) == line["sha256"])


def sha256_of(path: Path) -> str:
    """The sha256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            found.update(part)
    return found.hexdigest()
