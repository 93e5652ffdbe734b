"""The graph of a module, with batch and sequence length free: where every backend but TorchScript starts."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from regplug.backends.interface import Source, arguments_of, flatten
from regplug.errors import ExportError, one_line, place_in
from regplug.format.weights import save_tensors

TORCH_NAMESPACES = ("aten", "prims", "higher_order")  # of torch's own operations
EXTRA_TOKENS = 5  # that an example of free length gets


class WeightsAsInputs(nn.Module):
    """``(*inputs, *weights) -> flat outputs``: a program made from it holds no weights, so it works with any of them.

    Args:
        module: The module to run.
        names: The names of its weights, in their order.
        inputs: The names of its inputs, in their order.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], inputs: Sequence[str] = ("registers",)) -> None:
        super().__init__()
        self._module = [module]  # in a list, so that its weights are not weights of this module
        self._names = names
        self._inputs = inputs

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        """Run the module with these inputs and weights."""
        count = len(self._inputs)
        state = dict(zip(self._names, tensors[count:], strict=True))
        arguments, keywords = arguments_of(self._inputs, tensors[:count])
        return flatten(torch.func.functional_call(self._module[0], state, arguments, keywords))


def export_graph(backend: str, module: nn.Module, source: Source, weights: Sequence[Tensor] = ()) -> ExportedProgram:
    """``torch.export`` of a module: any batch from ``min_batch`` and, if T is free, any T from ``min_tokens``.

    Args:
        backend: The backend's name, for messages.
        module: ``source.module``, or a ``WeightsAsInputs`` around it.
        source: What is exported.
        weights: The inputs after the module's own.

    Raises:
        ExportError: torch.export cannot make such a graph; the cause is chained.
    """
    min_tokens = source.input.min_tokens
    # In a layout that begins or ends with its registers, T = R makes the slice a no-op, so torch refuses to treat
    # T = R and T > R alike. The graph is the same, and the parity gate runs T = R.
    attempts = [min_tokens, min_tokens + 1] if source.input.shape[1] == "T" and min_tokens else [None]
    examples = _examples_of(source)
    for tokens in attempts:
        free = {"B": Dim("B", min=source.input.min_batch), **({"T": Dim("T", min=tokens)} if tokens else {})}
        shapes = [
            {place: free[size] for place, size in enumerate(one.shape) if size in free}
            for one in (source.input, *source.more_inputs)
        ]
        try:
            if isinstance(module, WeightsAsInputs):
                flat = (*examples, *weights)
                of_all = ((*shapes, *(None for _ in weights)),)
                return torch.export.export(module, flat, dynamic_shapes=of_all)
            arguments, keywords = arguments_of(source.input_names, examples)
            of_arguments, of_keywords = arguments_of(source.input_names, shapes)
            by_name = {_first_name(module): of_arguments[0], **of_keywords}
            return torch.export.export(module, arguments, keywords, dynamic_shapes=by_name)
        except Exception as caught:  # torch.export raises what the module raises, and a dozen classes of its own
            failed = caught
    raise ExportError(
        f"program {backend!r}: expected a module that torch.export takes with a free batch, got: {one_line(failed)}"
    ) from failed


def _first_name(module: nn.Module) -> str:
    """The name of forward's first parameter."""
    return next(iter(inspect.signature(module.forward).parameters))


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


def _examples_of(source: Source) -> list[Tensor]:
    """The examples, with more tokens if T is free: torch would fix T at the size of a short example."""
    examples = [source.example, *source.more_examples]
    if source.input.shape[1] != "T":
        return examples
    return [
        _longer(example) if spec.shape[1:2] == ("T",) else example
        for spec, example in zip((source.input, *source.more_inputs), examples, strict=True)
    ]


def _longer(example: Tensor) -> Tensor:
    return torch.cat([example, example.new_ones(example.shape[0], EXTRA_TOKENS, *example.shape[2:])], dim=1)


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
