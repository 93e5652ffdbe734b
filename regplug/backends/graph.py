"""The graph of a module, with batch and sequence length free: where every backend but TorchScript starts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from regplug.backends.interface import Source, flatten
from regplug.errors import ExportError, one_line, place_in
from regplug.format.weights import save_tensors

TORCH_NAMESPACES = ("aten", "prims", "higher_order")  # of torch's own operations
EXTRA_TOKENS = 5  # that an example of free length gets


class WeightsAsInputs(nn.Module):
    """``(given, *weights) -> flat outputs``: a program made from it holds no weights, so it works with any of them.

    Args:
        module: The module to run.
        names: The names of its weights, in the order of the inputs.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self._module = [module]  # in a list, so that its weights are not weights of this module
        self._names = names

    def forward(self, given: Tensor, *weights: Tensor) -> list[Tensor]:
        """Run the module with these weights."""
        state = dict(zip(self._names, weights, strict=True))
        return flatten(torch.func.functional_call(self._module[0], state, (given,)))


def export_graph(backend: str, module: nn.Module, source: Source, weights: Sequence[Tensor] = ()) -> ExportedProgram:
    """``torch.export`` of a module: any batch from ``min_batch`` and, for a conditioner, any T from ``min_tokens``.

    Args:
        backend: The backend's name, for messages.
        module: ``source.module``, or a ``WeightsAsInputs`` around it.
        source: What is exported.
        weights: The inputs after the first.

    Raises:
        ExportError: torch.export cannot make such a graph; the cause is chained.
    """
    min_tokens = source.input.min_tokens
    # In a layout that begins or ends with its registers, T = R makes the slice a no-op, so torch refuses to treat
    # T = R and T > R alike. The graph is the same, and the parity gate runs T = R.
    attempts = [min_tokens, min_tokens + 1] if source.input.shape[1] == "T" and min_tokens else [None]
    for tokens in attempts:
        sizes: dict[int, Any] = {0: Dim("B", min=source.input.min_batch)}
        if tokens is not None:
            sizes[1] = Dim("T", min=tokens)
        fixed = tuple(None for _ in weights)
        shapes = (sizes, fixed) if weights else (sizes,)
        try:
            return torch.export.export(module, (_example_of(source), *weights), dynamic_shapes=shapes)
        except Exception as caught:  # torch.export raises what the module raises, and a dozen classes of its own
            failed = caught
    raise ExportError(
        f"program {backend!r}: expected a module that torch.export takes with a free batch, got: {one_line(failed)}"
    ) from failed


def foreign_operations(graph: ExportedProgram) -> list[Node]:
    """The calls of operations that another library registered (``torch.library``)."""
    modules = [part for part in graph.graph_module.modules() if isinstance(part, GraphModule)]
    return [
        node
        for module in modules
        for node in module.graph.nodes
        if node.op == "call_function" and getattr(node.target, "namespace", TORCH_NAMESPACES[0]) not in TORCH_NAMESPACES
    ]


def call_site(node: Node) -> str | None:
    """``file.py:12``: the line of the user's code that a node of a graph comes from; None if it is unknown."""
    return place_in(str(node.meta.get("stack_trace")), innermost_last=True)


def _example_of(source: Source) -> Tensor:
    """The example, with more tokens if T is free: torch would fix T at the size of a short example."""
    if source.input.shape[1] != "T":
        return source.example
    batch, _, width = source.example.shape
    more = torch.zeros(batch, EXTRA_TOKENS, width, dtype=source.example.dtype, device="cpu")
    return torch.cat([source.example, more], dim=1)


def format_graph(graph: ExportedProgram) -> str:
    """The graph as text: the same for the same computation, without weights, file names or line numbers."""
    inner = graph.graph_module.named_modules()
    parts = [f"{name}:{part.code}" for name, part in inner if isinstance(part, GraphModule)]
    parts += [f"{spec.kind.name} {spec.target}" for spec in graph.graph_signature.input_specs]
    parts += map(str, graph.range_constraints.values())
    for name, value in sorted(graph.constants.items()):  # tensors that forward() makes from numbers
        data = save_tensors({"constant": value}) if isinstance(value, Tensor) else repr(value).encode()
        parts.append(f"{name} {hashlib.sha256(data).hexdigest()}")
    return "\n".join(parts)
