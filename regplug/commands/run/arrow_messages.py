"""The rows and bytes of each record batch of an Arrow IPC file or stream, without its columns. Imports no torch.

pyarrow has no function for that: it would read, and decompress, all columns. The layout is that of Arrow's Message.fbs
and File.fbs, which are stable; tables are flatbuffers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

Read = Callable[[int, int], bytes]  # the bytes from a position, at most so many

END = b"ARROW1"
CONTINUATION = 0xFFFFFFFF
RECORD_BATCH = 3  # of MessageHeader
BLOCK = struct.Struct("<qi4xq")  # offset, length of the metadata, length of the body


def batches_of_file(read: Read, size: int) -> Iterator[tuple[int, int]]:
    """Rows and bytes of each record batch of a file of ``size`` bytes.

    Raises:
        ValueError: It is no such file.
        struct.error: It is damaged.
    """
    tail = size - len(END) - 4
    (length,) = struct.unpack("<i", read(tail, 4))
    if read(tail + 4, len(END)) != END or not 0 < length <= tail:
        raise ValueError("expected a footer at the end, got none")
    footer = read(tail - length, length)
    blocks = _field(footer, _reference(footer, 0), 3)
    if blocks is None:
        return
    start = _reference(footer, blocks)
    (count,) = struct.unpack_from("<I", footer, start)
    for number in range(count):
        offset, head, body = BLOCK.unpack_from(footer, start + 4 + number * BLOCK.size)
        rows = _rows_of(_message(read(offset, head)))
        if rows is None:
            raise ValueError(f"expected record batch {number} at {offset}, got another message")
        yield rows, body


def batches_of_stream(read: Read) -> Iterator[tuple[int, int]]:
    """Rows and bytes of each record batch of a stream.

    Raises:
        ValueError: It ends too early.
        struct.error: It is damaged.
    """
    place = 0
    while prefix := read(place, 8):
        marker, length = struct.unpack("<II", prefix.ljust(8, b"\0"))
        start = 8
        if marker != CONTINUATION:  # before Arrow 0.15 there was only a length
            start, length = 4, marker
        if length == 0:
            return
        message = read(place + start, length)
        if len(message) != length:
            raise ValueError(f"expected a message of {length} bytes, got {len(message)}")
        table = _reference(message, 0)
        size = _field(message, table, 3)
        body = 0 if size is None else struct.unpack_from("<q", message, size)[0]
        if body < 0:
            raise ValueError(f"expected a message with a body, got one of {body} bytes")
        rows = _rows_of(message)
        place += start + length + body
        if rows is not None:
            yield rows, body


def _message(data: bytes) -> bytes:
    """The message in a block, behind its length."""
    return data[8:] if data[:4] == b"\xff" * 4 else data[4:]


def _rows_of(message: bytes) -> int | None:
    """The rows of a message's record batch; None if it is another message."""
    table = _reference(message, 0)
    kind, header = _field(message, table, 1), _field(message, table, 2)
    if kind is None or header is None or message[kind] != RECORD_BATCH:
        return None
    rows = _field(message, _reference(message, header), 0)
    count: int = 0 if rows is None else struct.unpack_from("<q", message, rows)[0]
    if count < 0:
        raise ValueError(f"expected a number of rows, got {count}")
    return count


def _reference(data: bytes, place: int) -> int:
    """Where a reference leads."""
    (distance,) = struct.unpack_from("<I", data, place)
    return place + int(distance)


def _field(data: bytes, table: int, number: int) -> int | None:
    """Where a table has a field; None if it has the default."""
    (distance,) = struct.unpack_from("<i", data, table)
    sizes = table - distance
    (size,) = struct.unpack_from("<H", data, sizes)
    if 4 + 2 * number >= size:
        return None
    (offset,) = struct.unpack_from("<H", data, sizes + 4 + 2 * number)
    return table + offset if offset else None
