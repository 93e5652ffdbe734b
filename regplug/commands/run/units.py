"""The units of work: files, and parts of large ones. Each has one file of results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from regplug.commands.run.addresses import InputFile
from regplug.commands.run.open_shard import open_shard
from regplug.commands.run.shard import Piece
from regplug.errors import RegplugError, message_of

UNIT_BYTES = 128 << 20  # of input, uncompressed: about what is lost when a process is killed


@dataclass(frozen=True)
class Unit:
    """Some pieces of one file.

    Args:
        file: The file.
        pieces: The first piece, and the first one behind.
        first: The first row's number in the file.
        rows: How many rows.
        name: Its results' path below the output folder, without suffix.
    """

    file: InputFile
    pieces: tuple[int, int]
    first: int
    rows: int
    name: str


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be opened; its name is that of its results."""

    file: InputFile
    name: str
    reason: str


def plan(files: Sequence[InputFile], check: Callable[[Sequence[str]], None]) -> Iterator[Unit | Unreadable]:
    """The units of files, in their order. A file of at most about 128 MiB is one unit.

    Args:
        files: The files; of each only the header or footer is read.
        check: Called with each file's columns; raises a RegplugError if they are not what is needed.
    """
    for file in files:
        try:
            shard = open_shard(file)
            try:
                check(shard.names)
                pieces = shard.pieces()
            finally:
                shard.close()
        except RegplugError as error:
            yield Unreadable(file, file.name, message_of(error))
            continue
        yield from _units(file, pieces)


def _units(file: InputFile, pieces: Sequence[Piece]) -> Iterator[Unit]:
    groups: list[list[Piece]] = [[]]
    for piece in pieces:
        if sum(one.nbytes for one in groups[-1]) >= UNIT_BYTES:
            groups.append([])
        groups[-1].append(piece)
    start = first = 0
    for number, group in enumerate(groups):
        name = file.name if len(groups) == 1 else f"{file.name}-{number:05}-of-{len(groups):05}"
        rows = sum(one.rows for one in group)
        yield Unit(file, (start, start + len(group)), first, rows, name)
        start, first = start + len(group), first + rows
