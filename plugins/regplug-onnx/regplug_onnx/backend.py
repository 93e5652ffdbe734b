"""The ``onnx`` backend: a program without weights, which ONNX Runtime runs on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import distributions

import onnx
import torch
from torch import Tensor
from torch.export import ExportedProgram

from regplug import ExportError, SpecError
from regplug.backends import ExportBackend, Program, Run, Source, call_site, export_graph, reused, weights_property
from regplug_onnx.making import MIN_OPSET, make_model
from regplug_onnx.opening import open_model

FILE = "program.onnx"
# from 20 on, Gelu is one operator; onnxruntime has it since 1.17
OPSET = 20
# torch.onnx writes all of them with Erf, which onnxruntime has in float32 alone (float16 is cast to it)
IN_FLOAT32 = {torch.ops.aten.gelu.default, torch.ops.aten.erf.default}
MADE_WITH = ("onnx", "onnx-ir", "onnxscript")


class OnnxBackend(ExportBackend):
    """Exports through ``torch.onnx``; weights stay in ``weights.safetensors``, into which the program points.

    Args:
        opset: The version of ONNX's operators to use, at least 18: a lower one for an older runtime.

    Raises:
        SpecError: No such opset.
    """

    def __init__(self, opset: int = OPSET) -> None:
        newest = onnx.defs.onnx_opset_version()
        if type(opset) is not int or not MIN_OPSET <= opset <= newest:
            raise SpecError(f"program 'onnx': opset: expected {MIN_OPSET} to {newest}, got {opset!r}.")
        self.opset = opset

    def export(self, source: Source) -> list[Program]:
        """One program, ``program.onnx``.

        Raises:
            ExportError: ONNX cannot express the module, or changes its weights.
        """
        _check_dtypes(source)
        source.progress("graph")
        graph = export_graph("onnx", source.module, source)
        _check_kernels(graph)

        def make() -> list[Program]:
            source.progress("ONNX model")
            properties = {**weights_property(source), "opset": str(self.opset)}
            return [Program(FILE, make_model(graph, source, self.opset), properties)]

        # "nan": programs in the cache that an older regplug-onnx made lack keep_nan
        settings = {"opset": self.opset, "nan": 1, **{name: _version_of(name) for name in MADE_WITH}}
        return reused("onnx", source, graph, settings, make)

    def open(self, owner: str, program: Program, weights: Mapping[str, Tensor]) -> Run:
        """Make a session from the program's bytes and these weights; no file is opened.

        Raises:
            BundleError: It is no ONNX program of this backend, or needs other weights.
        """
        return open_model(owner, program, weights)


def _version_of(distribution: str) -> str:
    """The version of an installed distribution; ``unknown`` without metadata, as in a frozen application."""
    return next((found.version for found in distributions(name=distribution)), "unknown")


def _check_dtypes(source: Source) -> None:
    """Refuse early the dtypes for which the CPU provider has no kernels."""
    if "bfloat16" in {source.input.dtype, *(stored.dtype for stored in source.weights.values())}:
        raise ExportError(
            "program 'onnx': expected float32, float64 or float16 weights, got bfloat16; "
            "onnxruntime has no kernels for it on the CPU: export module.float()."
        )


def _check_kernels(graph: ExportedProgram) -> None:
    """Refuse float64 operations that the CPU provider has in float32 alone, before the model is made."""
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if node.target in IN_FLOAT32 and isinstance(value, Tensor) and value.dtype == torch.float64:
            place = call_site(node)
            where = f" at {place}" if place else ""
            raise ExportError(
                f"program 'onnx': operation {node.target}{where}: expected float32 or float16, got float64; "
                "onnxruntime has no kernel for it (Erf) on the CPU: export module.float()."
            )
