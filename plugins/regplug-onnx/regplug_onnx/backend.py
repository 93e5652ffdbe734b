"""The ``onnx`` backend: a program without weights, which ONNX Runtime runs on the CPU."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import torch
from torch import Tensor
from torch.export import ExportedProgram

from regplug.backends.graph import export_graph
from regplug.backends.interface import ExportBackend, Program, Run, Source
from regplug.backends.reuse import reused
from regplug.errors import ExportError, SpecError, place_in
from regplug.format.weights import write_types
from regplug.registry.distributions import version_of
from regplug_onnx.making import LEAST_OPSET, make_model
from regplug_onnx.opening import open_model

FILE = "program.onnx"
# Gelu is one operator from 20 on; onnxruntime knows it since 1.17
OPSET = 20
# torch.onnx spells all of them with Erf, which onnxruntime has in float32 (float16 is cast to it)
IN_FLOAT32 = {torch.ops.aten.gelu.default, torch.ops.aten.erf.default}
MAKERS = ("onnx", "onnx-ir", "onnxscript")


class OnnxBackend(ExportBackend):
    """Exports through ``torch.onnx``; weights stay in ``weights.safetensors``, which the program points into.

    Args:
        opset: The version of ONNX's operators to use, at least 18: a lower one for an older runtime.

    Raises:
        SpecError: No such opset.
    """

    def __init__(self, opset: int = OPSET) -> None:
        newest = onnx.defs.onnx_opset_version()
        if type(opset) is not int or not LEAST_OPSET <= opset <= newest:
            raise SpecError(f"program 'onnx': opset: expected {LEAST_OPSET} to {newest}, got {opset!r}.")
        self.opset = opset

    def export(self, source: Source) -> list[Program]:
        """One program, ``program.onnx``.

        Raises:
            ExportError: ONNX cannot express the module, or its weights are not there as they are stored.
        """
        _check_dtypes(source)
        source.progress("graph")
        graph = export_graph("onnx", source.module, source)
        _check_kernels(graph)

        def make() -> list[Program]:
            source.progress("ONNX model")
            weights = {name: (stored.dtype, stored.shape) for name, stored in source.weights.items()}
            properties = {"weights": write_types(weights), "opset": str(self.opset)}
            return [Program(FILE, make_model(graph, source, self.opset), properties)]

        # what an older regplug-onnx kept has no keep_nan
        settings = {"opset": self.opset, "nan": 1, **{name: version_of(name) for name in MAKERS}}
        return reused("onnx", source, graph, settings, make)

    def open(self, owner: str, program: Program, weights: Mapping[str, Tensor]) -> Run:
        """Make a session of the program's bytes and these weights; no file is opened.

        Raises:
            BundleError: It is no ONNX program of this backend, or wants other weights.
        """
        return open_model(owner, program, weights)


def _check_dtypes(source: Source) -> None:
    """Refuse early what the CPU provider has no kernels for."""
    if "bfloat16" in {source.input.dtype, *(stored.dtype for stored in source.weights.values())}:
        raise ExportError(
            "program 'onnx': expected float32, float64 or float16 weights, got bfloat16; "
            "onnxruntime has no kernels for it on the CPU: export module.float()."
        )


def _check_kernels(graph: ExportedProgram) -> None:
    """Refuse before the model is made what it would have in float64 and the CPU provider has in float32 alone."""
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if node.target in IN_FLOAT32 and isinstance(value, Tensor) and value.dtype == torch.float64:
            place = place_in(str(node.meta.get("stack_trace")), innermost_last=True)
            where = f" at {place}" if place else ""
            raise ExportError(
                f"program 'onnx': operation {node.target}{where}: expected float32 or float16, got float64; "
                "onnxruntime has no kernel for it (Erf) on the CPU: export module.float()."
            )
