"""Parquet files; a piece is a row group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from regplug.commands.extras import import_extra
from regplug.commands.run.addresses import InputFile, errors_of, open_file
from regplug.commands.run.shard import Piece

BUFFER = 1 << 20  # bytes of each column that are read at once: a row group may be larger than the memory


class ParquetShard:
    """A ``Shard``.

    Raises:
        SpecError: It is not a Parquet file.
    """

    def __init__(self, file: InputFile) -> None:
        self._owner = file.owner
        parquet = import_extra("run", "pyarrow.parquet")
        with errors_of(self._owner):
            self._stream: Any = open_file(file)
            self._file = parquet.ParquetFile(self._stream, buffer_size=BUFFER, pre_buffer=False)
            self.names: Sequence[str] = self._file.schema_arrow.names

    def pieces(self) -> Sequence[Piece]:
        """A piece for each row group; its bytes are without compression."""
        facts = self._file.metadata
        groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
        return [Piece(one.num_rows, one.total_byte_size) for one in groups]

    def batches(self, pieces: range, names: Sequence[str], size: int) -> Iterator[Mapping[str, Any]]:
        """The rows of some row groups, in batches."""
        with errors_of(self._owner):
            for batch in self._file.iter_batches(size, row_groups=list(pieces), columns=list(names), use_threads=False):
                yield {name: batch.column(name) for name in names}

    def empty(self, names: Sequence[str]) -> Mapping[str, Any]:
        """The columns without rows."""
        table = self._file.schema_arrow.empty_table()
        return {name: table.column(name).combine_chunks() for name in names}

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._stream.close()
