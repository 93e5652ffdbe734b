"""safetensors files: tensors with one row for each sample; a piece is some rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from regplug.commands.run.addresses import InputFile, errors_of, open_file
from regplug.commands.run.shard import Piece
from regplug.errors import SpecError, shorten
from regplug.format.manifest import IMAGES
from regplug.format.safetensors_header import DTYPE_NAMES, TensorInfo, read_header_with
from regplug.registry.dtypes import torch_dtype
from regplug.registry.layout import REGISTERS, TOKENS

if TYPE_CHECKING:
    from torch import Tensor

PIECE_BYTES = 32 << 20


class SafetensorsShard:
    """A ``Shard``; its columns are tensors.

    Raises:
        SpecError: It cannot be read, or its tensors have different numbers of rows.
        BundleError: It is not a safetensors file.
    """

    def __init__(self, file: InputFile) -> None:
        self._owner = file.owner
        with errors_of(self._owner):
            self._stream: Any = open_file(file)
            size = self._stream.seek(0, os.SEEK_END)
            self._tensors, _ = read_header_with(self._owner, size, self._read)
            self._start = 8 + int.from_bytes(self._read(0, 8), "little")
        self._rows = self._count()
        # others, as a scale, have no row for each sample
        self._tensors = {name: one for name, one in self._tensors.items() if one.shape[:1] == (self._rows,)}
        self.names: Sequence[str] = list(self._tensors)
        self._row_bytes = sum(one.end - one.begin for one in self._tensors.values()) // max(self._rows, 1)
        self._step = max(PIECE_BYTES // max(self._row_bytes, 1), 1)

    def _count(self) -> int:
        """How many samples: the rows of tokens or images if it has some, else those of all tensors."""
        given = [one for name, one in self._tensors.items() if name in (REGISTERS, TOKENS, IMAGES)]
        counts = {one.shape[:1] for one in given or self._tensors.values()}
        if len(counts) != 1 or () in counts:
            got = shorten([f"{name} {list(one.shape)}" for name, one in self._tensors.items()]) or "nothing"
            raise SpecError(f"{self._owner}: expected tensors with the same number of rows, got {got}.")
        return counts.pop()[0]

    def pieces(self) -> Sequence[Piece]:
        """Pieces of about 32 MiB."""
        counts = [min(self._step, self._rows - start) for start in range(0, self._rows, self._step)]
        return [Piece(count, count * self._row_bytes) for count in counts]

    def batches(self, pieces: range, names: Sequence[str], size: int) -> Iterator[Mapping[str, Any]]:
        """The rows of some pieces, in batches."""
        last = min(pieces.stop * self._step, self._rows)
        for start in range(pieces.start * self._step, last, size):
            stop = min(start + size, last)
            with errors_of(self._owner):
                part = {name: self._rows_of(self._tensors[name], start, stop) for name in names}
            yield part

    def empty(self, names: Sequence[str]) -> Mapping[str, Any]:
        """The columns without rows."""
        return {name: self._rows_of(self._tensors[name], 0, 0) for name in names}

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _rows_of(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        import torch  # not needed to count rows

        width = (info.end - info.begin) // max(self._rows, 1)
        begin = self._start + info.begin
        data = bytearray(self._read(begin + start * width, begin + stop * width))  # torch warns of read-only memory
        shape = (stop - start, *info.shape[1:])
        dtype = torch_dtype(DTYPE_NAMES[info.dtype])
        return torch.frombuffer(data, dtype=dtype).reshape(shape) if prod(shape) else torch.empty(shape, dtype=dtype)

    def _read(self, begin: int, end: int) -> bytes:
        self._stream.seek(begin)
        data = bytes(self._stream.read(end - begin))
        if len(data) != end - begin:
            raise SpecError(
                f"{self._owner}: expected {end} bytes, got {begin + len(data)}; it changed while it was read."
            )
        return data
