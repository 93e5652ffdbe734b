"""Makes the bytes of an ONNX program from a graph: the computation, where its weights are, and nothing else."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import onnx
import torch
from google.protobuf.message import Message
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto
from torch.export import ExportedProgram
from torch.fx import Node

from regplug import ExportError
from regplug.backends import WEIGHTS, Source, StoredTensor, one_line
from regplug_onnx.nan import keep_nan

if TYPE_CHECKING:
    from onnx_ir import Model

MIN_OPSET = 18  # torch.onnx writes these operators; for a lower opset it would convert the model afterwards
DTYPES = {
    "float64": TensorProto.DOUBLE,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int16": TensorProto.INT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}
DTYPE_NAMES: dict[int, str] = {number: name for name, number in DTYPES.items()}
ANSI_COLORS = re.compile(r"\x1b\[[0-9;]*m")


def make_model(graph: ExportedProgram, source: Source, opset: int) -> bytes:
    """The program's bytes: the same on any machine for the same graph and the same offsets of weights.

    Args:
        graph: The module's graph.
        source: What is exported.
        opset: The version of ONNX's operators.

    Raises:
        ExportError: ONNX lacks an operator, or a weight is missing or differs from the stored one.
    """
    names = [output.name for output in source.outputs]
    drop_whole_slices(graph)
    try:
        with _exporter_without_notices():
            made: Any = torch.onnx.export(
                graph,
                dynamo=True,
                opset_version=opset,
                optimize=False,  # it would fold weights into constants
                input_names=source.input_names,
                output_names=names,
                verbose=False,
            )
            rename_clashes(made.model, source.weights)
            model: ModelProto = made.model_proto
            onnx.checker.check_model(model)
    except ExportError:
        raise
    except Exception as error:  # the exporter wraps all that its translations raise
        raise ExportError(
            f"program 'onnx': expected a module that torch.onnx.export takes, got: {_root_of(error)}"
        ) from error
    point_to_weights(model, source.weights, used_weights(graph))
    keep_nan(model)
    strip(model)
    _declare(model.graph.input, [one.shape for one in (source.input, *source.more_inputs)])
    _declare(model.graph.output, [output.shape for output in source.outputs])
    check_offsets(model, source.weights)
    return bytes(model.SerializeToString(deterministic=True))


def drop_whole_slices(graph: ExportedProgram) -> None:
    """Remove slices of everything: ``tokens[:, a:b]`` has one, for which ONNX Runtime copies all tokens.

    Args:
        graph: Changed in place.
    """
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.slice.Tensor and _is_whole(*node.args, **node.kwargs):
            # an output keeps its name, which the graph's signature holds
            node.replace_all_uses_with(node.args[0], delete_user_cb=lambda user: user.op != "output")
            if not node.users:
                graph.graph.erase_node(node)
    graph.graph_module.recompile()


def _is_whole(of: object, dim: int = 0, start: object = None, end: object = None, step: object = 1) -> bool:
    return start in (None, 0) and end in (None, sys.maxsize) and step == 1


def rename_clashes(model: Model, weights: Iterable[str]) -> None:
    """Rename values that have the name of a weight: the exporter calls the result of ``x.mean()`` ``mean``.

    Args:
        model: Changed in place.
        weights: The names of the weights.

    Raises:
        ExportError: The input or an output has the name of a weight.
    """
    from onnx_ir.traversal import RecursiveGraphIterator  # takes a third of a second, which loading need not pay

    taken = set(weights)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name in taken and not value.is_initializer():
            raise ExportError(
                f"program 'onnx': tensor {value.name!r}: expected another name than the input's and the outputs', "
                "got the same; rename it in the module."
            )
    for node in RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            if value.name in taken:
                value.name += ":0"  # no weight has a colon in its name


def used_weights(graph: ExportedProgram) -> set[str]:
    """The names of the state dict's tensors that an output depends on; ONNX drops the others."""
    signature = graph.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    reached: set[Node] = set()
    left = [graph.graph.output_node()]
    while left:
        node = left.pop()
        if node not in reached:
            reached.add(node)
            left += node.all_input_nodes
    return {target for name, target in targets.items() if name in {node.name for node in reached}}


def point_to_weights(model: ModelProto, weights: Mapping[str, StoredTensor], used: set[str]) -> None:
    """Replace each weight's bytes by its offset in the weights file.

    Args:
        model: Changed in place.
        weights: Where each weight is.
        used: Those that the program must read.

    Raises:
        ExportError: A weight is missing from the program, or has another dtype or shape there.
    """
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, stored in weights.items():
        tensor = found.get(name)
        if tensor is None:
            if name in used:
                raise ExportError(
                    f"program 'onnx': tensor '{name}': expected a weight of the program, got none; it was folded away."
                )
            continue
        wanted, got = f"{stored.dtype} {list(stored.shape)}", describe(tensor)
        if wanted != got:
            raise ExportError(f"program 'onnx': tensor '{name}': expected {wanted} as it is stored, got {got}.")
        place = TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims)
        if stored.nbytes:
            place.data_location = TensorProto.EXTERNAL
            for key, value in (("location", WEIGHTS), ("offset", stored.offset), ("length", stored.nbytes)):
                place.external_data.add(key=key, value=str(value))
        tensor.CopyFrom(place)


def check_offsets(model: ModelProto, weights: Mapping[str, StoredTensor]) -> None:
    """Refuse a model that reads anything but the weights file, or a weight from a wrong offset.

    Raises:
        ExportError: A tensor's data is elsewhere.
    """
    for message in messages_of(model):
        if not isinstance(message, TensorProto) or not message.external_data:
            continue
        got = {entry.key: entry.value for entry in message.external_data}
        stored = weights.get(message.name)
        wanted = stored and {"location": WEIGHTS, "offset": str(stored.offset), "length": str(stored.nbytes)}
        if got != wanted:
            raise ExportError(f"program 'onnx': tensor '{message.name}': expected data at {wanted}, got {got}.")


def describe(tensor: TensorProto) -> str:
    """``float32 [6, 24]``."""
    return f"{DTYPE_NAMES.get(tensor.data_type, tensor.data_type)} {list(tensor.dims)}"


def messages_of(message: Message) -> Iterator[Message]:
    """A protobuf message and all messages inside it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            # a repeated field is a sequence of messages
            for inner in [value] if isinstance(value, Message) else value:
                yield from messages_of(inner)


def strip(model: ModelProto) -> None:
    """Remove traces of the exporting machine: notes, stack traces, the producer, unneeded shapes."""
    for message in messages_of(model):
        for field in ("metadata_props", "doc_string", "producer_name", "producer_version", "value_info"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)
        if isinstance(message, NodeProto):
            message.attribute.sort(key=lambda attribute: attribute.name)  # some come from a set


def _declare(values: list[ValueInfoProto], shapes: list[tuple[int | str, ...]]) -> None:
    """Write the shapes as in the manifest, B and T by name."""
    for value, shape in zip(values, shapes, strict=True):
        dims = value.type.tensor_type.shape
        dims.ClearField("dim")
        for size in shape:
            dims.dim.add(**({"dim_param": size} if isinstance(size, str) else {"dim_value": size}))


def _root_of(error: BaseException) -> str:
    """The message of the first in a chain of exceptions; the others only name the exporter's step."""
    while error.__cause__ is not None:
        error = error.__cause__
    return ANSI_COLORS.sub("", one_line(error))


@contextmanager
def _exporter_without_notices() -> Iterator[None]:
    """Silence two notices of torch 2.13's exporter about itself, and nothing else.

    It copies a TreeSpec whose type it deprecates (FutureWarning), and logs that torchvision is not installed.
    """
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    logger.addFilter(keep)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        logger.removeFilter(keep)
