"""The graph of a module, with batch and sequence length free: what the backends beyond TorchScript start from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from regplug.backends.interface import Source, flatten
from regplug.errors import ExportError, one_line
from regplug.format.weights import save_tensors

OWN = ("aten", "prims", "higher_order")  # namespaces of torch's operations


class WeightsAsInputs(nn.Module):
    """``(given, *weights) -> flat outputs``: a program of it holds no weights, so it serves every set of them.

    Args:
        module: The module whose weights become inputs.
        names: Their names, in the order of the inputs.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self._held = [module]  # in a list, so that its weights are none of this module's
        self._names = names

    def forward(self, given: Tensor, *weights: Tensor) -> list[Tensor]:
        """Run the module with these weights."""
        state = dict(zip(self._names, weights, strict=True))
        return flatten(torch.func.functional_call(self._held[0], state, (given,)))


def export_graph(backend: str, module: nn.Module, source: Source, weights: Sequence[Tensor] = ()) -> ExportedProgram:
    """``torch.export`` of a module: the batch from ``min_batch`` up and, for a conditioner, T from ``min_tokens`` up.

    Args:
        backend: The backend's name, for messages.
        module: ``source.module``, or a ``WeightsAsInputs`` around it.
        source: What is exported.
        weights: The inputs after the first.

    Raises:
        ExportError: The module has no such graph; the cause is chained.
    """
    least = source.input.min_tokens
    # a layout that begins or ends with its registers: torch tells T = R from T > R, for there the slice is the whole;
    # the graph is the same, and the gate runs T = R
    attempts = [least, least + 1] if source.input.shape[1] == "T" and least else [None]
    for tokens in attempts:
        sizes: dict[int, Any] = {0: Dim("B", min=source.input.min_batch)}
        if tokens is not None:
            sizes[1] = Dim("T", min=tokens)
        fixed = tuple(None for _ in weights)
        shapes = (sizes, fixed) if weights else (sizes,)
        try:
            return torch.export.export(module, (_longer(source), *weights), dynamic_shapes=shapes)
        except Exception as caught:  # torch.export raises what the module raises, and a dozen classes of its own
            failed = caught
    raise ExportError(
        f"program {backend!r}: expected a module that torch.export takes with a free batch, got: {one_line(failed)}"
    ) from failed


def operations_of_others(graph: ExportedProgram) -> list[Node]:
    """The calls of operations that a library registered (``torch.library``), not torch itself."""
    modules = [part for part in graph.graph_module.modules() if isinstance(part, GraphModule)]
    return [
        node
        for module in modules
        for node in module.graph.nodes
        if node.op == "call_function" and getattr(node.target, "namespace", OWN[0]) not in OWN
    ]


def _longer(source: Source) -> Tensor:
    """The example; of a free length with some tokens more, or torch takes T for the number it happens to be."""
    if source.input.shape[1] != "T":
        return source.example
    batch, _, width = source.example.shape
    more = torch.zeros(batch, 5, width, dtype=source.example.dtype, device="cpu")
    return torch.cat([source.example, more], dim=1)


def format_graph(graph: ExportedProgram) -> str:
    """The graph as text: the same for the same computation, without weights and without the maker's files and lines."""
    inner = graph.graph_module.named_modules()
    parts = [f"{name}:{part.code}" for name, part in inner if isinstance(part, GraphModule)]
    parts += [f"{spec.kind.name} {spec.target}" for spec in graph.graph_signature.input_specs]
    parts += map(str, graph.range_constraints.values())
    for name, value in sorted(graph.constants.items()):  # tensors that forward() makes of numbers
        data = save_tensors({"constant": value}) if isinstance(value, Tensor) else repr(value).encode()
        parts.append(f"{name} {hashlib.sha256(data).hexdigest()}")
    return "\n".join(parts)
