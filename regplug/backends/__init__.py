"""From a module to programs: the export backends, and the names that a backend of yours imports.

Importing this package imports no torch: every name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regplug.backends.graph import WeightsAsInputs as WeightsAsInputs
    from regplug.backends.graph import call_site as call_site
    from regplug.backends.graph import export_graph as export_graph
    from regplug.backends.interface import ExportBackend as ExportBackend
    from regplug.backends.interface import Program as Program
    from regplug.backends.interface import Run as Run
    from regplug.backends.interface import Source as Source
    from regplug.backends.interface import flatten as flatten
    from regplug.backends.program_weights import check_weights as check_weights
    from regplug.backends.program_weights import weights_property as weights_property
    from regplug.backends.reuse import reused as reused
    from regplug.errors import one_line as one_line
    from regplug.format.manifest import WEIGHTS as WEIGHTS
    from regplug.format.manifest import InputSpec as InputSpec
    from regplug.format.manifest import TensorSpec as TensorSpec
    from regplug.format.safetensors_header import StoredTensor as StoredTensor

_HOMES = {
    "ExportBackend": "backends.interface",
    "InputSpec": "format.manifest",
    "Program": "backends.interface",
    "Run": "backends.interface",
    "Source": "backends.interface",
    "StoredTensor": "format.safetensors_header",
    "TensorSpec": "format.manifest",
    "WEIGHTS": "format.manifest",
    "WeightsAsInputs": "backends.graph",
    "call_site": "backends.graph",
    "check_weights": "backends.program_weights",
    "export_graph": "backends.graph",
    "flatten": "backends.interface",
    "one_line": "errors",
    "reused": "backends.reuse",
    "weights_property": "backends.program_weights",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'regplug.backends' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"regplug.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
