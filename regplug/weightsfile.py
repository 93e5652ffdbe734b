"""Sets a module's weights from a lone weights file that fits it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from torch import nn

from regplug.conditioner import Conditioner
from regplug.errors import BundleError
from regplug.folder import read_lone_file
from regplug.installed import default_registry
from regplug.rebuilding import describe_film
from regplug.spec import ReadoutSpec
from regplug.weights import load_state, load_tensors, read_metadata


def fill(module: nn.Module, path: str, spec: ReadoutSpec) -> None:
    """Set the module's weights from a safetensors file.

    Raises:
        BundleError: The file is malformed, says that it is of another strategy, or does not fit.
    """
    owner = f"weights {path}"
    data = read_lone_file(owner, path)
    said = read_metadata(owner, data)
    for key, wanted in _description(module, spec).items():
        if key in said and said[key] != wanted:
            raise BundleError(f"{owner}: {key}: expected {wanted!r}, got {said[key]!r}, as the file says of itself.")
    load_state(owner, module, load_tensors(owner, data))


def _description(module: nn.Module, spec: ReadoutSpec) -> dict[str, Any]:
    """What a weights file for the module may not contradict; a readout's layout is only a note."""
    wanted = {key: value for key, value in spec.as_dict().items() if key != "cond_dim"}
    if not isinstance(module, Conditioner):
        return {**wanted, "holds": "readout"}
    film = json.loads(json.dumps(asdict(describe_film(module, default_registry()))))
    return {**wanted, "holds": "conditioner", "layout": module.layout.as_dict(), "film": film}
