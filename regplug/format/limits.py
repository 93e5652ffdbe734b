"""Every limit of the format, in one place; ``docs/bundle.md`` specifies them."""

from __future__ import annotations

MAX_MANIFEST = 1 << 20  # bytes of a file
MAX_WEIGHTS = 64 << 30  # a file may be sparse: a large size costs its author nothing
MAX_GOLDEN = 256 << 20
MAX_PROGRAM = 4 << 30
MAX_HEADER = 1 << 20  # bytes of a safetensors header
MAX_METADATA_BYTES = 1 << 19  # of its metadata
MAX_METADATA_KEYS = 1024
MAX_TENSORS = 4096  # of a safetensors file
MAX_RANK = 8  # sizes of a tensor
MAX_ENTRIES = 4096  # names in a bundle's folder
MAX_REOPENS = 100  # how often a folder is opened again that is replaced while it is read
