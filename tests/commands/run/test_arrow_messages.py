"""The rows of record batches are those that pyarrow reads, and nothing but messages is read for them."""

import contextlib
import io
import struct

import numpy as np
import pyarrow as pa
import pytest

from regplug.commands.run.arrow_messages import batches_of_file, batches_of_stream

COUNTS = [3, 0, 250, 1, 70_000]


def written(new, **options):
    schema = pa.schema(
        {"id": pa.int64(), "word": pa.dictionary(pa.int8(), pa.string()), "x": pa.list_(pa.float32(), 8)}
    )
    out = io.BytesIO()
    with new(out, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for count in COUNTS:
            word = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int8()), ["a"])
            lists = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(count * 8, np.float32)), 8)
            writer.write_batch(pa.record_batch([pa.array(range(count)), word, lists], schema=schema))
    return out.getvalue()


class Reader:
    """Reads from bytes, and counts them."""

    def __init__(self, data):
        self.data, self.count = data, 0

    def __call__(self, place, count):
        self.count += count
        return self.data[place : place + count] if place >= 0 else b""


OPTIONS = [
    {},
    {"compression": "lz4"},
    {"compression": "zstd"},
    {"use_legacy_format": True, "metadata_version": pa.ipc.MetadataVersion.V4},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_rows_of_files_and_streams_are_those_that_were_written(options):
    read = Reader(written(pa.ipc.new_file, **options))
    found = list(batches_of_file(read, len(read.data)))
    assert [rows for rows, _ in found] == COUNTS
    assert read.count < 10_000
    assert sum(nbytes for _, nbytes in found) < len(read.data)
    read = Reader(written(pa.ipc.new_stream, **options))
    assert [rows for rows, _ in batches_of_stream(read)] == COUNTS
    assert read.count < 10_000


def test_a_file_without_record_batches_has_none():
    out = io.BytesIO()
    with pa.ipc.new_file(out, pa.schema({"id": pa.int64()})):
        pass
    read = Reader(out.getvalue())
    assert list(batches_of_file(read, len(read.data))) == []
    out = io.BytesIO()
    with pa.ipc.new_stream(out, pa.schema({"id": pa.int64()})):
        pass
    assert list(batches_of_stream(Reader(out.getvalue()))) == []


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_damaged_files_end_with_an_error_or_numbers(new):
    """What is wrong in the numbers is found when the rows are read."""
    whole = written(new)
    draw = np.random.default_rng(0)
    metadata = np.r_[0:1500, len(whole) - 1500 : len(whole)]
    for _ in range(2000):
        data = bytearray(whole)
        for place in draw.choice(metadata, 3):
            data[place] = draw.integers(256)
        data = bytes(data[: draw.integers(len(data))]) if draw.random() < 0.2 else bytes(data)
        read = Reader(data)
        with contextlib.suppress(struct.error, ValueError, IndexError):
            found = list(batches_of_file(read, len(data)) if new is pa.ipc.new_file else batches_of_stream(read))
            assert all(isinstance(rows, int) and rows >= 0 for rows, _ in found)
