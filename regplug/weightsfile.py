"""A lone weights file: says what it is, and fills a module that it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from regplug.errors import BundleError
from regplug.spec import ReadoutSpec
from regplug.weights import load_state, load_tensors, read_metadata


def fill(module: nn.Module, path: str, spec: ReadoutSpec) -> None:
    """Set the module's weights from a safetensors file.

    Raises:
        BundleError: The file is malformed, says that it is of another strategy, or does not fit.
    """
    owner = f"weights {path}"
    data = Path(path).read_bytes()
    said = read_metadata(owner, data)
    wanted = spec.as_dict()
    for key in ("strategy", "num_registers", "hidden_dim", "options"):
        if key in said and said[key] != wanted[key]:
            raise BundleError(
                f"{owner}: {key}: expected {wanted[key]!r}, got {said[key]!r}, as the file says of itself."
            )
    load_state(owner, module, load_tensors(owner, data))


def describe(path: str) -> dict[str, Any]:
    """What the file says of itself, and its tensors.

    Raises:
        BundleError: The file is malformed.
    """
    from regplug.weights import read_header

    owner = f"weights {path}"
    data = Path(path).read_bytes()
    tensors, _ = read_header(owner, data)
    return {
        "weights": path,
        **read_metadata(owner, data),
        "tensors": [
            {"name": name, "dtype": info.dtype, "shape": list(info.shape), "bytes": info.end - info.begin}
            for name, info in sorted(tensors.items())
        ],
    }
