"""What this package offers to regplug. Imports neither torch nor onnx, so that listing stays fast."""

from __future__ import annotations

import regplug


@regplug.hookimpl
def regplug_export_backends() -> list[regplug.ExportBackendEntry]:
    """Offer the export backend ``onnx``."""
    return [
        regplug.ExportBackendEntry(
            "onnx",
            build="regplug_onnx.backend:OnnxBackend",
            summary="runs wherever ONNX Runtime does; reads the bundle's one weights file",
        )
    ]
