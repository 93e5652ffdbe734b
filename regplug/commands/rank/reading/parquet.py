"""Parquet files, read in batches: images as Hugging Face stores them, or tokens as lists."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regplug.commands.extras import import_extra
from regplug.commands.rank.reading.source import (
    LABEL_NAMES,
    PICTURES,
    REGISTERS,
    TOKENS,
    Batch,
    Picture,
    chosen_name,
    digest_of_files,
    owner_of,
)
from regplug.errors import SpecError, one_line, shorten

IMAGE_NAMES = ("image", "images", "img")
BUFFER = 1 << 20  # bytes of each column that are read at once


class ParquetFiles:
    """The rows of Parquet files with equal columns; a ``Source``.

    Args:
        path: The file, or the folder of the files.
        files: The files in order.
        labels: The column with the labels; None for ``labels`` or ``label``.
        groups: The column with the groups, or None.

    Raises:
        SpecError: pyarrow is not installed, a file is damaged, or there is no column of images, tokens or registers.
    """

    def __init__(self, path: Path, files: Sequence[Path], labels: str | None, groups: str | None) -> None:
        self.kind = "Parquet"
        self.path = path
        self.facts: Mapping[str, Any] = {"files": len(files)}
        self._owner = owner_of(path)
        self._files = files
        self._parquet: Any = import_extra("parquet", "pyarrow.parquet")
        self._arrow: Any = import_extra("parquet", "pyarrow")
        schemas = [self._opened(file).schema_arrow for file in files]
        columns = schemas[0].names
        other = next((number for number, one in enumerate(schemas) if one.names != columns), None)
        if other is not None:
            raise SpecError(
                f"data {files[other]}: expected the columns of {files[0].name} ({shorten(columns)}), "
                f"got {shorten(schemas[other].names)}."
            )
        label = chosen_name(self._owner, "labels", labels, columns, LABEL_NAMES)
        group = None if groups is None else chosen_name(self._owner, "groups", groups, columns, ())
        self._column = self._input_column(columns, {label, group})
        self.content = self._content(schemas[0].field(self._column).type)
        self.names = _class_names(schemas[0].metadata, label)
        self.labels: Any = self._values(label)
        self.groups: Any = None if group is None else self._values(group)

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """The sha256 of the files."""
        return digest_of_files(self._files)

    def batches(self, start: int, size: int) -> Iterator[Batch]:
        """The rows from ``start`` on; row groups before it are not read."""
        row = 0
        for file in self._files:
            opened = self._opened(file)
            groups = []
            first = None  # the row of the first row group that is read
            for number in range(opened.num_row_groups):
                rows = opened.metadata.row_group(number).num_rows
                if row + rows > start and rows:
                    groups.append(number)
                    first = row if first is None else first
                row += rows
            if first is None:
                continue
            try:
                for batch in opened.iter_batches(size, row_groups=groups, columns=[self._column]):
                    column = batch.column(0).slice(max(0, start - first))
                    first += len(batch)
                    if len(column):
                        yield self._batch(column, first - len(column), file)
            except (self._arrow.ArrowException, OSError) as error:
                raise self._damaged(file, error) from error

    def _opened(self, file: Path) -> Any:
        try:
            return self._parquet.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
        except (self._arrow.ArrowException, OSError) as error:
            raise self._damaged(file, error) from error

    def _damaged(self, file: Path, error: BaseException) -> SpecError:
        return SpecError(f"data {file}: expected a Parquet file, got {one_line(error)}.")

    def _input_column(self, columns: Sequence[str], taken: set[str | None]) -> str:
        known = (REGISTERS, TOKENS, *IMAGE_NAMES)
        found = [name for name in known if name in columns and name not in taken]
        if len(found) != 1:
            got = " and ".join(found) or shorten(list(columns))
            raise SpecError(f"{self._owner}: expected one of the columns {', '.join(known)}, got {got}.")
        return found[0]

    def _content(self, kind: Any) -> str:
        types = self._arrow.types
        if self._column in (REGISTERS, TOKENS):
            return self._column
        if types.is_struct(kind):
            fields = {one.name: one.type for one in kind}
            if "bytes" in fields and is_binary(types, fields["bytes"]):
                return PICTURES
        elif is_binary(types, kind):
            return PICTURES
        raise SpecError(
            f"{self._owner}: column {self._column!r}: expected files, as binary or struct<bytes, path>, got {kind}."
        )

    def _values(self, column: str) -> Any:
        """A column as a list, or as numbers ``[n]`` or ``[n, K]``; null becomes None."""
        try:
            parts = [self._parquet.ParquetFile(file).read([column]).column(0) for file in self._files]
        except (self._arrow.ArrowException, OSError) as error:
            raise self._damaged(self.path, error) from error
        types = self._arrow.types
        values: list[Any] = []
        for part in parts:
            kind = part.type
            if part.null_count == 0 and (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
                values.append(part.to_numpy())
            else:
                values.append(part.to_pylist())
        if all(isinstance(one, np.ndarray) for one in values):
            return np.concatenate(values)
        return [one for part in values for one in part]

    def _batch(self, column: Any, row: int, file: Path) -> Batch:
        if self.content == PICTURES:
            return [self._picture(one, row + number, file) for number, one in enumerate(column)]
        return {self._column: self._tensor(column, row)}

    def _picture(self, scalar: Any, row: int, file: Path) -> Picture:
        value = scalar.as_py()
        name = None
        if isinstance(value, dict):
            value, name = value["bytes"], value.get("path")
        owner = f"{self._owner}: row {row}" + (f" ({name})" if name else "")
        if value is not None:
            return Picture(owner, lambda: io.BytesIO(value))
        if name is None:
            raise SpecError(f"{owner}: expected an image, got none.")
        return Picture(owner, lambda: file.parent / name)

    def _tensor(self, column: Any, row: int) -> Tensor:
        """Lists of lists of floats, nested in any way, or tensors of a fixed shape, as ``[B, ..., ...]`` in float32."""
        owner = f"{self._owner}: column {self._column!r}"
        shape: list[int] = []
        values = column
        if isinstance(values, self._arrow.FixedShapeTensorArray):
            if list(values.type.permutation or shape) != sorted(values.type.permutation or shape):
                raise SpecError(f"{owner}: expected rows one after the other, got a permutation {column.type}.")
            shape, values = list(values.type.shape), values.storage
        count, depth = len(values), 0
        types = self._arrow.types
        while is_list(types, values.type):
            if values.null_count:
                raise SpecError(f"{owner}: expected numbers in every row, got none in a row from {row} on.")
            values, depth = values.flatten(), depth + 1
            shape = shape if isinstance(column, self._arrow.FixedShapeTensorArray) else [*shape, len(values)]
        if not (types.is_floating(values.type) and depth) or values.null_count:
            got = f"{values.null_count} nulls from row {row} on" if values.null_count else str(column.type)
            raise SpecError(f"{owner}: expected lists of floats, got {got}.")
        if not isinstance(column, self._arrow.FixedShapeTensorArray):
            self._check_even(column, row)
            shape = [after // max(before, 1) for before, after in zip([count, *shape[:-1]], shape, strict=True)]
        numbers = values.to_numpy(zero_copy_only=False).astype(np.float32)
        return torch.from_numpy(numbers.reshape(count, *shape))

    def _check_even(self, column: Any, row: int) -> None:
        """Refuse rows of different lengths."""
        compute = import_extra("parquet", "pyarrow.compute")
        values, rows = column, np.arange(row, row + len(column))
        while is_list(self._arrow.types, values.type):
            lengths = compute.list_value_length(values).to_numpy(zero_copy_only=False)
            if len(lengths) and (lengths != lengths[0]).any():
                wrong = int((lengths != lengths[0]).argmax())
                raise SpecError(
                    f"{self._owner}: column {self._column!r}: row {rows[wrong]}: expected {lengths[0]} values, as the "
                    f"rows before it, got {lengths[wrong]}."
                )
            values, rows = values.flatten(), np.repeat(rows, lengths.astype(int))


def is_binary(types: Any, kind: Any) -> bool:
    """Whether a column holds bytes."""
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def is_list(types: Any, kind: Any) -> bool:
    """Whether a column holds lists."""
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _class_names(metadata: Mapping[bytes, bytes] | None, label: str) -> Sequence[str] | None:
    """The names of integer labels, where Hugging Face's datasets wrote them into the schema."""
    try:
        found = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(one) for one in found] if isinstance(found, list) else None
