"""Keeps a NaN a NaN: ONNX Runtime's ReduceMax and ReduceMin skip it, torch's ``amax`` and ``amin`` do not."""

from __future__ import annotations

import math
from collections.abc import Iterable

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

REDUCTIONS = ("ReduceMax", "ReduceMin")
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


def keep_nan(model: ModelProto) -> None:
    """Make each ReduceMax and ReduceMin give NaN where one of its numbers is NaN.

    ``Where(any(IsNaN(x)), NaN, ReduceMax(x))``; elementwise Max and Min keep NaN by themselves.

    Args:
        model: Changed in place; its values still have their types.
    """
    graph = model.graph
    types = _types(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        kind = types.get(node.input[0]) if node.op_type in REDUCTIONS else None
        nodes += _with_nan(node, kind) if kind in FLOATS else [node]
    del graph.node[:]
    graph.node.extend(nodes)


def _types(graph: GraphProto) -> dict[str, int]:
    values: Iterable[tuple[str, int]] = (
        (value.name, value.type.tensor_type.elem_type) for value in (*graph.input, *graph.value_info, *graph.output)
    )
    return dict([*values, *((tensor.name, tensor.data_type) for tensor in graph.initializer)])


def _with_nan(node: NodeProto, kind: int) -> list[NodeProto]:
    given, *axes = node.input
    (output,) = node.output
    # no weight has a colon in its name
    plain, flags, numbers, most, found, nan = (
        f"{output}:{word}" for word in ("max", "nans", "ones", "most", "any", "nan")
    )
    reduced = NodeProto()
    reduced.CopyFrom(node)
    reduced.output[0] = plain
    counted = helper.make_node("ReduceMax", [numbers, *axes], [most], name=most)
    counted.attribute.extend(node.attribute)
    value = helper.make_tensor(nan, kind, [], [math.nan])
    return [
        reduced,
        helper.make_node("IsNaN", [given], [flags], name=flags),
        helper.make_node("Cast", [flags], [numbers], name=numbers, to=TensorProto.FLOAT),
        counted,
        helper.make_node("Cast", [most], [found], name=found, to=TensorProto.BOOL),
        helper.make_node("Constant", [], [nan], name=nan, value=value),
        helper.make_node("Where", [found, nan, plain], [output], name=output),
    ]
