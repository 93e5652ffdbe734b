"""Makes the bytes of an ONNX program out of a graph: the computation, where its weights stand, and nothing else."""

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

from regplug.backends.interface import Source
from regplug.errors import ExportError, one_line
from regplug.format.manifest import WEIGHTS
from regplug.format.safetensors_header import StoredTensor
from regplug_onnx.nan import keep_nan

if TYPE_CHECKING:
    from onnx_ir import Model

LEAST_OPSET = 18  # what torch.onnx has operators for; below, it would convert the model afterwards
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
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def make_model(graph: ExportedProgram, source: Source, opset: int) -> bytes:
    """The program's bytes: the same for the same graph and the same places of weights, on any machine.

    Args:
        graph: The module's graph.
        source: What is exported.
        opset: The version of ONNX's operators.

    Raises:
        ExportError: ONNX has no such operator, or a weight is not there as it is stored.
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
                input_names=[source.input.name],
                output_names=names,
                verbose=False,
            )
            part_names(made.model, source.weights)
            model: ModelProto = made.model_proto
            onnx.checker.check_model(model)
    except ExportError:
        raise
    except Exception as error:  # the exporter wraps whatever its translations raise
        raise ExportError(
            f"program 'onnx': expected a module that torch.onnx.export takes, got: {_root_of(error)}"
        ) from error
    point_to_weights(model, source.weights, used_weights(graph))
    keep_nan(model)
    strip(model)
    _declare(model.graph.input, [source.input.shape])
    _declare(model.graph.output, [output.shape for output in source.outputs])
    check_places(model, source.weights)
    return bytes(model.SerializeToString(deterministic=True))


def drop_whole_slices(graph: ExportedProgram) -> None:
    """Take out slices from the first to the last: ``tokens[:, a:b]`` has one, and ONNX Runtime copies all tokens there.

    Args:
        graph: Changed in place.
    """
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.slice.Tensor and _is_whole(*node.args, **node.kwargs):
            # what is given back keeps its name: the graph's signature has it
            node.replace_all_uses_with(node.args[0], delete_user_cb=lambda user: user.op != "output")
            if not node.users:
                graph.graph.erase_node(node)
    graph.graph_module.recompile()


def _is_whole(of: object, dim: int = 0, start: object = None, end: object = None, step: object = 1) -> bool:
    return start in (None, 0) and end in (None, sys.maxsize) and step == 1


def part_names(model: Model, weights: Iterable[str]) -> None:
    """Rename what bears a weight's name and is none: the exporter calls the result of ``x.mean()`` ``mean``.

    Args:
        model: Changed in place.
        weights: The names of the weights.

    Raises:
        ExportError: The input or an output bears a weight's name.
    """
    from onnx_ir.traversal import RecursiveGraphIterator  # a third of a second, which no loader should pay

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
    """The names of the state dict's tensors that an output depends on; what is computed for nothing, ONNX drops."""
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
    """Replace each weight's bytes by its place in the weights file.

    Args:
        model: Changed in place.
        weights: Where each weight stands.
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


def check_places(model: ModelProto, weights: Mapping[str, StoredTensor]) -> None:
    """Refuse to ship a model that reads anything but the weights file, each weight where it stands.

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
    """A protobuf message and all within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            # a message has fields; a repeated one is a sequence
            for inner in [value] if isinstance(value, Message) else value:
                yield from messages_of(inner)


def strip(model: ModelProto) -> None:
    """Take out what tells of the exporting machine: notes, stack traces, the producer, unneeded shapes."""
    for message in messages_of(model):
        for field in ("metadata_props", "doc_string", "producer_name", "producer_version", "value_info"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)
        if isinstance(message, NodeProto):
            message.attribute.sort(key=lambda attribute: attribute.name)  # some come out of a set


def _declare(values: list[ValueInfoProto], shapes: list[tuple[int | str, ...]]) -> None:
    """Write the shapes as the manifest has them, B and T by name."""
    for value, shape in zip(values, shapes, strict=True):
        dims = value.type.tensor_type.shape
        dims.ClearField("dim")
        for size in shape:
            dims.dim.add(**({"dim_param": size} if isinstance(size, str) else {"dim_value": size}))


def _root_of(error: BaseException) -> str:
    """What the first of a chain of exceptions says; those around it say which step of the exporter it was."""
    while error.__cause__ is not None:
        error = error.__cause__
    return COLOURS.sub("", one_line(error))


@contextmanager
def _exporter_without_notices() -> Iterator[None]:
    """Silence what torch 2.13's exporter says of itself, and nothing else.

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
