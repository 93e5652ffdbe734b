"""Makes an ONNX program runnable: a session of ONNX Runtime from checked bytes and weights, without a file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto
from onnxruntime import InferenceSession, OrtValue, SessionOptions
from torch import Tensor

from regplug import BundleError
from regplug.backends import WEIGHTS, Program, Run, check_weights, one_line
from regplug_onnx.making import describe, messages_of

OWN_DOMAINS = ("", "ai.onnx")
FATAL = 4  # onnxruntime's log severity: errors raise exceptions, which are reported


def open_model(owner: str, program: Program, weights: Mapping[str, Tensor]) -> Run:
    """A session of the program with these weights.

    Args:
        owner: The program's weights file, for messages.
        program: The program.
        weights: The module's state dict; copied.

    Raises:
        BundleError: It is no program of this backend, or needs other weights.
    """
    check_weights(owner, program, weights)
    model = read_model(program.label, program.data, max(1, len(program.inputs)))
    names = check_external_data(program.label, model, weights)
    # the session reads the weights from this memory, so `run` keeps both alive
    held = [OrtValue.ortvalue_from_numpy(weights[name].detach().clone().numpy()) for name in names]
    session = _session(program.label, model, names, held)
    given_names = [one.name for one in session.get_inputs()]

    def run(*inputs: Tensor, _held: list[OrtValue] = held) -> list[Tensor]:
        given = {name: one.numpy(force=True) for name, one in zip(given_names, inputs, strict=True)}
        return [torch.from_numpy(out) for out in session.run(None, given)]

    return run


def read_model(where: str, data: bytes, count: int = 1) -> ModelProto:
    """The model, without all that ONNX Runtime might read besides the computation.

    Args:
        where: The program's file, for messages.
        data: Its bytes.
        count: How many inputs it must have.

    Raises:
        BundleError: It is no ONNX model, or has more than one graph of ONNX's own operators.
    """
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise BundleError(f"{where}: expected an ONNX model, got other bytes.") from None
    model.DiscardUnknownFields()  # a runtime newer than onnx may know them
    model.ClearField("metadata_props")  # may hold settings of the session
    inputs, outputs = len(model.graph.input), len(model.graph.output)
    if inputs != count or not outputs:
        wanted = "one input" if count == 1 else f"{count} inputs"
        raise BundleError(f"{where}: expected {wanted} and some outputs, got {inputs} and {outputs}.")
    if model.functions or model.training_info:
        raise BundleError(f"{where}: expected one graph, got functions or training with it.")
    for message in messages_of(model):
        # operators of other domains may read files (com.microsoft's EPContext does)
        if isinstance(message, NodeProto) and message.domain not in OWN_DOMAINS:
            raise BundleError(
                f"{where}: expected ONNX's own operators, got {message.op_type!r} of domain {message.domain!r}."
            )
    return model


def check_external_data(where: str, model: ModelProto, weights: Mapping[str, Tensor]) -> list[str]:
    """The names of the weights that a model takes from outside.

    ONNX Runtime would open any file that a tensor names, even by an absolute path, and reads one special location as
    an address in memory; it does neither for a tensor that the session is given.

    Raises:
        BundleError: A tensor's data is external, but it is not a weight, or has another dtype or shape.
    """
    external = [message for message in messages_of(model) if isinstance(message, TensorProto) and _is_external(message)]
    names: list[str] = []
    for tensor in external:
        name = tensor.name
        locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
        if locations != [WEIGHTS]:
            raise BundleError(f"{where}: tensor {name!r}: expected data in [{WEIGHTS!r}], got {locations}.")
        if name not in weights or name in names:
            raise BundleError(f"{where}: tensor {name!r}: expected the weights, each once, got another tensor.")
        weight = weights[name]
        wanted = f"{str(weight.dtype).removeprefix('torch.')} {list(weight.shape)}"
        if wanted != (got := describe(tensor)):
            raise BundleError(f"{where}: tensor {name!r}: expected {wanted}, got {got}.")
        names.append(name)
    # the session takes tensors for the initializers of the main graph alone
    if names != [tensor.name for tensor in model.graph.initializer if _is_external(tensor)]:
        raise BundleError(f"{where}: expected the weights as initializers of the graph, got some elsewhere.")
    return names


def _is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data) > 0


def _session(where: str, model: ModelProto, names: list[str], held: list[OrtValue]) -> InferenceSession:
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    options.add_external_initializers(names, held)
    try:
        # its fallback would print the error and try the same again
        return InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # onnxruntime has a dozen exception classes of its own
        raise BundleError(f"{where}: {one_line(error)}") from error
