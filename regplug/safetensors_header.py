"""The strict reader of safetensors headers: which tensors a file holds, and where; ``docs/bundle.md`` has its rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from regplug.errors import BundleError
from regplug.strict import LARGEST, DuplicateKeyError, WrongValueError, parse_json, plain_digits, shown

MAX_HEADER = 1 << 20
MAX_TENSORS = 4096
MAX_RANK = 8
MAX_METADATA_KEYS = 1024
MAX_METADATA_BYTES = 1 << 19
TENSOR_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")
ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
TORCH_WORDS = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
DTYPE_NAMES = dict(zip(ITEM_SIZES, TORCH_WORDS, strict=True))
FIELDS = ("dtype", "shape", "data_offsets")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file: its dtype (``F32``), shape, and place in the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes stand in a safetensors file, counted from the file's begin."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class _Malformed(Exception):
    """A rule of ``docs/bundle.md`` and what broke it."""


def read_header(owner: str, data: bytes) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors, sorted by name, and the metadata of a safetensors file, after every rule is checked.

    Args:
        owner: The file, for messages.
        data: All of its bytes.

    Raises:
        BundleError: A rule is broken; the message names the first in the order of ``docs/bundle.md``.
    """
    try:
        return _read_header(data)
    except _Malformed as error:
        raise BundleError(f"{owner}: {error}.") from None


def stored_tensors(owner: str, data: bytes) -> dict[str, StoredTensor]:
    """Where each tensor of a safetensors file stands, sorted by name; dtypes in torch's words (``float32``).

    Raises:
        BundleError: The file breaks a rule of ``docs/bundle.md``.
    """
    tensors, _ = read_header(owner, data)
    begin = 8 + int.from_bytes(data[:8], "little")
    return {
        name: StoredTensor(DTYPE_NAMES[info.dtype], info.shape, begin + info.begin, info.end - info.begin)
        for name, info in tensors.items()
    }


def _read_header(data: bytes) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    if len(data) < 8:
        raise _Malformed(f"size: expected at least 8 bytes, got {len(data)}")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER or length > len(data) - 8:
        raise _Malformed(f"size: expected a header inside the file and within {MAX_HEADER} bytes, got {length}")
    header = _parse(data[8 : 8 + length])
    metadata = _metadata(header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise _Malformed(f"name: expected at most {MAX_TENSORS} tensors, got {len(header)}")
    tensors = {name: _tensor_info(name, entry) for name, entry in sorted(header.items())}
    _check_cover(tensors, len(data) - 8 - length)
    _check_booleans(tensors, data, 8 + length)
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
        raise _Malformed(f"metadata: expected an object, got {shown(value)}")
    if len(value) > MAX_METADATA_KEYS:
        raise _Malformed(f"metadata: expected at most {MAX_METADATA_KEYS} keys, got {len(value)}")
    for _, text in sorted(value.items()):  # the first in the order of the keys, as everywhere
        if not isinstance(text, str):
            raise _Malformed(f"metadata: expected strings, got {shown(text)}")
    size = sum(len(key.encode()) + len(text.encode()) for key, text in value.items())
    if size > MAX_METADATA_BYTES:
        raise _Malformed(f"metadata: expected at most {MAX_METADATA_BYTES} bytes, got {size}")
    return value


def _tensor_info(name: str, entry: Any) -> TensorInfo:
    if not TENSOR_NAME.fullmatch(name):
        raise _Malformed(f"name: expected 1 to 256 letters, digits, '_', '.' and '-', got {shown(name)}")
    if not isinstance(entry, dict):
        raise _Malformed(f"tensor: tensor '{name}': expected an object, got {shown(entry)}")
    if set(entry) != set(FIELDS):
        raise _Malformed(f"tensor: tensor '{name}': expected exactly {', '.join(FIELDS)}, got {shown(sorted(entry))}")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise _Malformed(f"dtype: tensor '{name}': expected one of {', '.join(ITEM_SIZES)}, got {shown(dtype)}")
    item = ITEM_SIZES[dtype]
    sizes = _integers(f"shape: tensor '{name}'", "sizes", entry["shape"])
    if len(sizes) > MAX_RANK:
        raise _Malformed(f"shape: tensor '{name}': expected at most {MAX_RANK} sizes, got {len(sizes)}")
    # torch multiplies the sizes for its strides, those beside a 0 too
    if prod(filter(None, sizes)) * item >= 1 << 63:
        raise _Malformed(f"shape: tensor '{name}': expected fewer than 2^63 bytes, got {shown(sizes)}")
    offsets = _integers(f"offsets: tensor '{name}'", "offsets", entry["data_offsets"])
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Malformed(f"offsets: tensor '{name}': expected begin and end, begin <= end, got {shown(offsets)}")
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


def _check_booleans(tensors: Mapping[str, TensorInfo], data: bytes, start: int) -> None:
    """What another byte than 0 and 1 means as a boolean is left open by C++ and by torch."""
    for name, info in tensors.items():
        span = start + info.begin, start + info.end
        if info.dtype == "BOOL" and data.count(0, *span) + data.count(1, *span) != info.end - info.begin:
            first = next(byte for byte in data[slice(*span)] if byte > 1)
            raise _Malformed(f"bool: tensor '{name}': expected bytes 0 and 1, got {first}")


def _integers(where: str, what: str, value: Any) -> list[int]:
    if not isinstance(value, list):
        raise _Malformed(f"{where}: expected a list of {what}, got {shown(value)}")
    numbers = []
    for item in value:
        number = plain_size(item)
        if number is None:
            raise _Malformed(f"{where}: expected {what} in plain digits, below 2^53, got {shown(item)}")
        numbers.append(number)
    return numbers


def plain_size(value: object) -> int | None:
    """The number from 0 up, below 2^53, that JSON digits spell; None for anything else."""
    number = plain_digits(value)
    return number if number is not None and 0 <= number < LARGEST else None
