"""Reads the index of sharded safetensors: which tensors each file next to it has."""

from __future__ import annotations

import json
import re

from regplug.commands.import_checkpoint.checkpoint_file import DamagedError, OpenFile, without_duplicates

MAX_INDEX = 16 << 20  # bytes
MAX_SHARDS = 256  # each stays open
SHARD = re.compile(r"(?!\.)[\w.-]{1,200}\.safetensors")  # a file name, not a path


def read_index(file: OpenFile) -> dict[str, set[str]]:
    """The files that an index names, each with the tensors that it must have.

    Raises:
        DamagedError: It is not an index, or names a file that is not safetensors or is in another folder.
        BundleError: It cannot be read.
    """
    if file.size > MAX_INDEX:
        raise DamagedError(f"{file.size} bytes, of at most {MAX_INDEX}")
    try:
        index = json.loads(bytes(file.read(0, file.size)).decode(), object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError):
        raise DamagedError("no JSON in UTF-8") from None
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names:
        raise DamagedError("no weight_map, of names to files")
    shards: dict[str, set[str]] = {}
    for name, shard in names.items():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise DamagedError(f"a file {shard!r:.80}, where a name that ends in .safetensors was expected")
        shards.setdefault(shard, set()).add(name)
    if len(shards) > MAX_SHARDS:
        raise DamagedError(f"{len(shards)} files, of at most {MAX_SHARDS}")
    return shards
