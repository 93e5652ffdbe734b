"""Files of results: Parquet, Arrow IPC and safetensors. The same rows give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor

from regplug.commands.extras import import_extra
from regplug.commands.run.arrow_columns import arrow_column
from regplug.commands.run.columns import from_arrow
from regplug.commands.run.sink import HashedSink

GROUP_BYTES = 64 << 20  # of a row group or record batch
WRITE_VALUES = 1 << 18  # whose levels Parquet encodes at once: a quarter faster than with pyarrow's 1,024


class Writer(Protocol):
    """A file that gets its rows in batches."""

    def write(self, carried: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> None:
        """Add rows: columns that are copied, and outputs ``[n, width]``."""

    def close(self) -> None:
        """Write the rest."""

    def abandon(self) -> None:
        """Let go of the file, which is not complete."""


def open_writer(kind: str, sink: HashedSink, facts: Mapping[str, str]) -> Writer:
    """A writer of ``parquet``, ``arrow`` or ``safetensors`` with metadata."""
    if kind == "safetensors":
        return SafetensorsWriter(sink, facts)
    return TableWriter(kind, sink, facts)


class TableWriter:
    """Parquet and Arrow IPC."""

    def __init__(self, kind: str, sink: HashedSink, facts: Mapping[str, str]) -> None:
        self._arrow = import_extra("run", "pyarrow")
        self._kind, self._sink, self._facts = kind, sink, facts
        self._writer: Any = None
        self._waiting: list[Any] = []
        self._bytes = 0

    def write(self, carried: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> None:
        """Add rows; a row group is written when it is large enough."""
        columns = {name: (arrow_column(one) if isinstance(one, Tensor) else one) for name, one in carried.items()}
        columns |= {name: arrow_column(one) for name, one in outputs.items()}
        batch = self._arrow.record_batch(columns, metadata=self._facts)
        if self._writer is None:
            self._writer = self._opened(batch.schema, list(carried))
        self._waiting.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the rest."""
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        """Close pyarrow's writer now, and not when the descriptor belongs to another file."""
        if self._writer is not None:
            with suppress(Exception):  # what made the rows fail may fail again, as a full disk
                self._writer.close()

    def _opened(self, schema: Any, carried: Sequence[str]) -> Any:
        if self._kind == "arrow":
            return self._arrow.ipc.new_file(self._sink, schema)
        parquet = import_extra("run", "pyarrow.parquet")
        # outputs have few equal values: neither dictionaries nor statistics nor compression help them
        return parquet.ParquetWriter(
            self._sink,
            schema,
            compression="none",
            use_dictionary=list(carried),
            write_statistics=list(carried),
            write_batch_size=WRITE_VALUES,
        )

    def _flush(self) -> None:
        table = self._arrow.Table.from_batches(self._waiting, self._waiting[0].schema) if self._waiting else None
        self._waiting, self._bytes = [], 0
        if table is None:
            return
        if self._kind == "arrow":
            self._writer.write_table(table.combine_chunks())
        else:
            self._writer.write_table(table, row_group_size=max(table.num_rows, 1))


class SafetensorsWriter:
    """safetensors: a tensor for each column, in the module's dtype. The outputs stay in memory until the end."""

    def __init__(self, sink: HashedSink, facts: Mapping[str, str]) -> None:
        self._sink, self._facts = sink, facts
        self._columns: dict[str, list[Tensor]] = {}

    def write(self, carried: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> None:
        """Add rows.

        Raises:
            SpecError: A column that is copied is no tensor.
        """
        for name, one in carried.items():
            values = one if isinstance(one, Tensor) else from_arrow(f"column {name!r}", one)
            self._columns.setdefault(name, []).append(values)
        for name, one in outputs.items():
            self._columns.setdefault(name, []).append(one)

    def close(self) -> None:
        """Write the file."""
        tensors = {name: torch.cat(parts).contiguous() for name, parts in self._columns.items()}
        self._sink.write(save(tensors, metadata=dict(self._facts)))

    def abandon(self) -> None:
        """Nothing was written yet."""
