"""Reads safetensors headers strictly: which tensors a file has, and where. ``docs/bundle.md`` lists the rules."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from regplug.errors import BundleError
from regplug.format.folder import opened_file, read_array
from regplug.format.limits import MAX_HEADER, MAX_METADATA_BYTES, MAX_METADATA_KEYS, MAX_RANK, MAX_TENSORS
from regplug.format.strict_json import format_value
from regplug.registry.integers import MAX_INTEGER
from regplug.registry.json_text import DuplicateKeyError, WrongValueError, parse_json, plain_digits

TENSOR_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")
ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
TORCH_WORDS = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
DTYPE_NAMES = dict(zip(ITEM_SIZES, TORCH_WORDS, strict=True))
FIELDS = ("dtype", "shape", "data_offsets")
CHUNK = 1 << 20

Tensors = dict[str, "TensorInfo"]
Metadata = dict[str, str]
Read = Callable[[int, int], "bytes | bytearray"]  # the bytes of a file from begin to end


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file: its dtype (``F32``), shape, and place in the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's place in a safetensors file; ``offset`` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class _Malformed(Exception):
    """The file breaks a rule of ``docs/bundle.md``; the message begins with the rule's name."""


def read_header(owner: str, data: bytes | bytearray) -> tuple[Tensors, Metadata]:
    """The tensors, sorted by name, and the metadata of a safetensors file, after every rule is checked.

    Args:
        owner: The file, for messages.
        data: All of its bytes.

    Raises:
        BundleError: It breaks a rule; of several, the first in the order of ``docs/bundle.md``.
    """
    return read_header_with(owner, len(data), lambda begin, end: data[begin:end])


def read_file_header(owner: str, path: str) -> tuple[Tensors, Metadata]:
    """As ``read_header``, for a file outside a bundle; of its tensors only booleans are read.

    Raises:
        BundleError: It cannot be read, or breaks a rule.
    """
    with opened_file(owner, path) as descriptor:
        return read_header_with(owner, os.fstat(descriptor).st_size, _reader(owner, descriptor))


def read_file(owner: str, path: str) -> bytearray:
    """All bytes of a file outside a bundle; if it breaks a rule, only its header is read.

    Raises:
        BundleError: It cannot be read, or breaks a rule.
    """
    with opened_file(owner, path) as descriptor:
        size = os.fstat(descriptor).st_size
        read_header_with(owner, size, _reader(owner, descriptor))
        data = read_array(owner, descriptor, size)
    read_header(owner, data)  # it may have changed since the first check
    return data


def _reader(owner: str, descriptor: int) -> Read:
    def read(begin: int, end: int) -> bytes:
        part = os.pread(descriptor, end - begin, begin)
        if len(part) != end - begin:
            raise BundleError(f"{owner}: expected {end} bytes, got {begin + len(part)}; it changed while it was read.")
        return part

    return read


def read_header_with(owner: str, size: int, read: Read) -> tuple[Tensors, Metadata]:
    """As ``read_header``, for ``size`` bytes that ``read`` gives; of the tensors only booleans are read.

    Raises:
        BundleError: The file breaks a rule.
    """
    try:
        return _read_header(size, read)
    except _Malformed as error:
        raise BundleError(f"{owner}: {error}.") from None


def stored_tensors(owner: str, data: bytes | bytearray) -> dict[str, StoredTensor]:
    """The place of each tensor in a safetensors file, sorted by name; dtypes as torch names them (``float32``).

    Raises:
        BundleError: The file breaks a rule of ``docs/bundle.md``.
    """
    tensors, _ = read_header(owner, data)
    begin = 8 + int.from_bytes(data[:8], "little")
    return {
        name: StoredTensor(DTYPE_NAMES[info.dtype], info.shape, begin + info.begin, info.end - info.begin)
        for name, info in tensors.items()
    }


def _read_header(size: int, read: Read) -> tuple[Tensors, Metadata]:
    if size < 8:
        raise _Malformed(f"size: expected at least 8 bytes, got {size}")
    length = int.from_bytes(read(0, 8), "little")
    if length > MAX_HEADER or length > size - 8:
        raise _Malformed(f"size: expected a header inside the file and within {MAX_HEADER} bytes, got {length}")
    header = _parse(bytes(read(8, 8 + length)))
    metadata = _metadata(header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise _Malformed(f"name: expected at most {MAX_TENSORS} tensors, got {len(header)}")
    tensors = {name: _tensor_info(name, entry) for name, entry in sorted(header.items())}
    _check_cover(tensors, size - 8 - length)
    _check_booleans(tensors, read, 8 + length)
    return tensors, metadata


def _parse(header: bytes) -> dict[str, Any]:
    if not header.startswith(b"{") or not header.rstrip(b" ").endswith(b"}"):
        raise _Malformed("header: expected a JSON object from '{' to '}', then nothing but spaces")
    try:
        return parse_json(header)  # type: ignore[no-any-return]
    except DuplicateKeyError as error:
        raise _Malformed(f"duplicate: {error}") from None
    except WrongValueError:
        raise _Malformed("header: expected a JSON object in UTF-8") from None


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _Malformed(f"metadata: expected an object, got {format_value(value)}")
    if len(value) > MAX_METADATA_KEYS:
        raise _Malformed(f"metadata: expected at most {MAX_METADATA_KEYS} keys, got {len(value)}")
    for _, text in sorted(value.items()):  # in the order of the keys, so that the message is always the same
        if not isinstance(text, str):
            raise _Malformed(f"metadata: expected strings, got {format_value(text)}")
    size = sum(len(key.encode()) + len(text.encode()) for key, text in value.items())
    if size > MAX_METADATA_BYTES:
        raise _Malformed(f"metadata: expected at most {MAX_METADATA_BYTES} bytes, got {size}")
    return value


def _tensor_info(name: str, entry: Any) -> TensorInfo:
    if not TENSOR_NAME.fullmatch(name):
        raise _Malformed(f"name: expected 1 to 256 letters, digits, '_', '.' and '-', got {format_value(name)}")
    if not isinstance(entry, dict):
        raise _Malformed(f"tensor: tensor '{name}': expected an object, got {format_value(entry)}")
    if set(entry) != set(FIELDS):
        raise _Malformed(
            f"tensor: tensor '{name}': expected exactly {', '.join(FIELDS)}, got {format_value(sorted(entry))}"
        )
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise _Malformed(f"dtype: tensor '{name}': expected one of {', '.join(ITEM_SIZES)}, got {format_value(dtype)}")
    item = ITEM_SIZES[dtype]
    sizes = _integers(f"shape: tensor '{name}'", "sizes", entry["shape"])
    if len(sizes) > MAX_RANK:
        raise _Malformed(f"shape: tensor '{name}': expected at most {MAX_RANK} sizes, got {len(sizes)}")
    # torch computes strides from all sizes, also if one of them is 0
    if prod(filter(None, sizes)) * item >= 1 << 63:
        raise _Malformed(f"shape: tensor '{name}': expected fewer than 2^63 bytes, got {format_value(sizes)}")
    offsets = _integers(f"offsets: tensor '{name}'", "offsets", entry["data_offsets"])
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Malformed(f"offsets: tensor '{name}': expected begin and end, begin <= end, got {format_value(offsets)}")
    begin, end = offsets
    if end - begin != prod(sizes) * item:
        raise _Malformed(f"bytes: tensor '{name}': expected {prod(sizes) * item} bytes, got {end - begin}")
    if begin % item:
        raise _Malformed(f"alignment: tensor '{name}': expected a multiple of {item}, got {begin}")
    return TensorInfo(dtype, tuple(sizes), begin, end)


def _check_cover(tensors: Mapping[str, TensorInfo], size: int) -> None:
    end = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != end:
            raise _Malformed(f"offsets: tensor '{name}': expected begin {end}, got {info.begin}")
        end = info.end
    if end != size:
        raise _Malformed(f"offsets: expected tensors over {size} bytes, got {end}")


def _check_booleans(tensors: Mapping[str, TensorInfo], read: Read, start: int) -> None:
    """Refuse bytes other than 0 and 1: what they mean as a boolean is undefined in C++ and in torch."""
    for name, info in tensors.items():
        if info.dtype != "BOOL":
            continue
        for begin in range(start + info.begin, start + info.end, CHUNK):
            part = read(begin, min(begin + CHUNK, start + info.end))
            if part.count(0) + part.count(1) != len(part):
                first = next(byte for byte in part if byte > 1)
                raise _Malformed(f"bool: tensor '{name}': expected bytes 0 and 1, got {first}")


def _integers(where: str, what: str, value: Any) -> list[int]:
    if not isinstance(value, list):
        raise _Malformed(f"{where}: expected a list of {what}, got {format_value(value)}")
    numbers = []
    for item in value:
        number = plain_size(item)
        if number is None:
            raise _Malformed(f"{where}: expected {what} in plain digits, below 2^53, got {format_value(item)}")
        numbers.append(number)
    return numbers


def plain_size(value: object) -> int | None:
    """The JSON number, if it is written in plain digits, is not negative and is below 2^53; else None."""
    number = plain_digits(value)
    return number if number is not None and 0 <= number <= MAX_INTEGER else None
