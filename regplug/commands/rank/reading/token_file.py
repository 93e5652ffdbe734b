"""Files of tokens: joining shards to one file without holding it, and mapping that file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from torch import Tensor

from regplug.commands.rank.reading.source import REGISTERS

ALIGNMENT = 64  # bytes of the header's end, so that the tensors' data are aligned
ROWS = 4096  # samples that are in memory at a time


def joined(shards: Sequence[Path]) -> Iterator[bytes]:
    """The bytes of a safetensors file with each tensor of the shards, joined along the samples, in parts."""
    header = _header(shards)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in header:
        for path in shards:
            with safe_open(path, framework="numpy") as file:
                yield file.get_tensor(name).tobytes()


def _header(shards: Sequence[Path]) -> dict[str, Any]:
    shapes: dict[str, list[int]] = {}
    for path in shards:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118, it is not a dict
                shape = list(file.get_slice(name).get_shape())
                shapes.setdefault(name, [0, *shape[1:]])[0] += shape[0]
    header: dict[str, Any] = {}
    begin = 0
    for name, shape in sorted(shapes.items()):
        end = begin + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    return header


def count_samples(shard: Path) -> int:
    """How many samples a shard has."""
    with safe_open(shard, framework="pt") as file:
        return int(file.get_slice(REGISTERS).get_shape()[0])


def mapped(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a file, mapped: they are read from the disk as they are used."""
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is not a dict


def row_digests(registers: Tensor) -> np.ndarray:
    """A 64-bit digest of each sample's registers, ``[n]``: equal registers have equal digests."""
    found = np.empty(len(registers), dtype=np.uint64)
    for begin in range(0, len(registers), ROWS):
        rows = registers[begin : begin + ROWS].contiguous().flatten(1).numpy()
        for number, row in enumerate(rows):
            digest = hashlib.blake2b(row.data, digest_size=8).digest()
            found[begin + number] = int.from_bytes(digest, "little")
    return found


def count_duplicates(registers: Tensor) -> int:
    """How many samples have the registers of an earlier one."""
    return len(registers) - len(np.unique(row_digests(registers)))
