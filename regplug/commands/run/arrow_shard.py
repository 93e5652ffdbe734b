"""Arrow IPC: files, where a piece is a record batch, and streams, which are one piece."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from regplug.commands.extras import import_extra
from regplug.commands.run.addresses import InputFile, errors_of, is_remote, open_file
from regplug.commands.run.arrow_messages import batches_of_file, batches_of_stream
from regplug.commands.run.shard import Piece

FILE_START = b"ARROW1"
KEPT_BYTES = 64 << 20  # of a mapped file that are in memory


class ArrowShard:
    """A ``Shard``. A local file is mapped into memory.

    Raises:
        SpecError: It is neither an Arrow IPC file nor a stream.
    """

    def __init__(self, file: InputFile) -> None:
        self._owner = file.owner
        arrow = import_extra("run", "pyarrow")
        with errors_of(self._owner):
            self._map = None if is_remote(file.address) else _mapped(Path(file.address))
            self._stream = open_file(file) if self._map is None else arrow.BufferReader(arrow.py_buffer(self._map))
            is_file = self._stream.read(len(FILE_START)) == FILE_START
            self._stream.seek(0)
            self._size = file.size
            open_it = arrow.ipc.open_file if is_file else arrow.ipc.open_stream
            self._reader = open_it(self._stream)
            self._is_file = is_file
            self.names: Sequence[str] = self._reader.schema.names

    def pieces(self) -> Sequence[Piece]:
        """A piece for each record batch of a file; one for a stream. Columns are not read."""
        with errors_of(self._owner):
            if self._is_file:
                return [Piece(rows, nbytes) for rows, nbytes in batches_of_file(self._read, self._size)]
            return [Piece(sum(rows for rows, _ in batches_of_stream(self._read)), self._size)]

    def batches(self, pieces: range, names: Sequence[str], size: int) -> Iterator[Mapping[str, Any]]:
        """The rows of some record batches, in batches."""
        with errors_of(self._owner):
            found = (self._reader.get_batch(number) for number in pieces) if self._is_file else self._reader
            read = 0
            for batch in found:
                for start in range(0, batch.num_rows, size):
                    part = batch.slice(start, size)
                    yield {name: part.column(name) for name in names}
                    read += part.nbytes
                    if read >= KEPT_BYTES:
                        read = 0
                        self._let_go()

    def empty(self, names: Sequence[str]) -> Mapping[str, Any]:
        """The columns without rows."""
        table = self._reader.schema.empty_table()
        return {name: table.column(name).combine_chunks() for name in names}

    def close(self) -> None:
        """Close the file. Its memory is unmapped with the last column."""
        self._stream.close()

    def _read(self, place: int, count: int) -> bytes:
        self._stream.seek(place)
        return bytes(self._stream.read(count))

    def _let_go(self) -> None:
        """Take mapped pages out of this process's memory: they would add up to a whole record batch, of any size.

        They stay in the system's cache, and are mapped again where they are used.
        """
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
