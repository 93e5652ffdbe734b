"""Converts between state dicts and safetensors files; headers are checked strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from regplug.errors import BundleError, ExportError, class_name, one_line
from regplug.format.safetensors_header import (
    DTYPE_NAMES,
    TENSOR_NAME,
    StoredTensor,
    TensorInfo,
    plain_size,
    read_header,
    stored_tensors,
)
from regplug.registry.dtypes import torch_dtype
from regplug.registry.json_text import WrongValueError, parse_json, plain

if TYPE_CHECKING:
    from torch import Tensor, nn

METADATA_KEY = "regplug"

TensorType = tuple[str, tuple[int, ...]]  # dtype as torch names it, sizes


def load_tensors(owner: str, data: bytes | bytearray) -> dict[str, Tensor]:
    """The tensors of a safetensors file, sorted by name; they share the memory of a ``bytearray``.

    Raises:
        BundleError: The file breaks a rule of ``docs/bundle.md``.
    """
    import torch

    stored = stored_tensors(owner, data)
    shared = data if isinstance(data, bytearray) else bytearray(data)

    def tensor(one: StoredTensor) -> Tensor:
        dtype = torch_dtype(one.dtype)
        if not one.nbytes:
            return torch.empty(one.shape, dtype=dtype, device="cpu")
        found = torch.frombuffer(shared, dtype=torch.uint8, count=one.nbytes, offset=one.offset)
        if found.data_ptr() % dtype.itemsize:  # torch expects aligned data; it may begin anywhere in the file
            found = found.clone()
        return found.view(dtype).view(one.shape)

    return {name: tensor(one) for name, one in stored.items()}


def save_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of a safetensors file, with ``metadata`` as sorted JSON under the key ``regplug``."""
    from safetensors.torch import save

    # one key only: the order of several keys differs from process to process
    text = None if metadata is None else {METADATA_KEY: json.dumps(metadata, sort_keys=True, allow_nan=False)}
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=text)


def read_metadata(owner: str, data: bytes | bytearray) -> dict[str, Any]:
    """What a weights file says of itself; empty if it says nothing.

    Raises:
        BundleError: The file breaks a rule, or its ``regplug`` metadata is no JSON object.
    """
    return parse_metadata(owner, read_header(owner, data)[1])


def parse_metadata(owner: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """As ``read_metadata``, from the metadata of a header.

    Raises:
        BundleError: The value of ``regplug`` is not a JSON object.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        values = plain(parse_json(text.encode()))
    except WrongValueError:
        values = None
    if not isinstance(values, dict):
        raise BundleError(f"{owner}: metadata: expected a JSON object under {METADATA_KEY!r}.")
    return values


def state_of(owner: str, module: nn.Module) -> dict[str, Tensor]:
    """The module's state dict on the CPU, if it holds all the module's tensors.

    Raises:
        ExportError: A non-persistent buffer, a tensor outside the state dict, tied weights, a tensor subclass,
            or a tensor that safetensors cannot hold; named.
    """
    import torch

    try:
        state = module.state_dict()
    except (Exception, SystemExit) as error:  # a plugin's class may override it
        raise ExportError(
            f"{owner}: expected weights in state_dict(), got {class_name(error)}: {one_line(error)}"
        ) from error
    for name, _ in module.named_buffers():
        if name not in state:
            raise ExportError(f"{owner}: buffer {name!r}: expected a persistent buffer; it would be lost.")
    for prefix, child in module.named_modules():
        for attribute, value in vars(child).items():
            if isinstance(value, torch.Tensor):
                where = f"{prefix}.{attribute}".lstrip(".")
                raise ExportError(f"{owner}: tensor {where!r}: expected a parameter or buffer; it would be lost.")
    storages: dict[int, str] = {}
    for name, tensor in state.items():
        _check_storable(owner, name, tensor)
        pointer = tensor.untyped_storage().data_ptr() if tensor.numel() else 0
        if pointer and pointer in storages:
            raise ExportError(f"{owner}: expected separate weights, got {storages[pointer]!r} tied to {name!r}.")
        storages[pointer] = name
    return {name: tensor.detach().cpu() for name, tensor in state.items()}


def _check_storable(owner: str, name: str, tensor: object) -> None:
    import torch
    from torch import nn

    if not isinstance(tensor, torch.Tensor):
        raise ExportError(f"{owner}: state {name!r}: expected a tensor, got {type(tensor).__name__}.")
    # torch silently saves some subclasses, such as quantised weights, as zeros
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.is_quantized:
        fix = "; gather it first (full_tensor)" if type(tensor).__name__ == "DTensor" else ""
        raise ExportError(f"{owner}: tensor {name!r}: expected a plain tensor, got {type(tensor).__name__}{fix}.")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex():
        raise ExportError(f"{owner}: tensor {name!r}: expected a dense real tensor with data, got {tensor.dtype}.")
    if dtype_name(tensor) not in DTYPE_NAMES.values():
        raise ExportError(
            f"{owner}: tensor {name!r}: expected a dtype that a bundle holds, got {dtype_name(tensor)}; known: "
            f"{', '.join(DTYPE_NAMES.values())}."
        )
    if not TENSOR_NAME.fullmatch(name):
        raise ExportError(f"{owner}: tensor {name!r}: expected a name of letters, digits, '_', '.' and '-'.")


def load_state(owner: str, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set all weights of ``module``, after names, shapes and dtypes are compared; on a difference, none.

    Raises:
        BundleError: They do not fit.
    """
    check_state(owner, types_of(module.state_dict()), state)
    module.load_state_dict(dict(state), strict=True)


def types_of(state: Mapping[str, Tensor]) -> dict[str, TensorType]:
    """Dtype and sizes of each tensor, sorted by name."""
    return {name: (dtype_name(tensor), tuple(tensor.shape)) for name, tensor in sorted(state.items())}


def stored_types(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorType]:
    """Dtype and sizes of the tensors in a header."""
    return {name: (DTYPE_NAMES[info.dtype], info.shape) for name, info in tensors.items()}


def check_state(owner: str, wanted: Mapping[str, TensorType], state: Mapping[str, Tensor]) -> None:
    """Refuse weights with other names, shapes or dtypes than wanted.

    Raises:
        BundleError: The first difference.
    """
    check_types(owner, wanted, types_of(state))


def check_types(owner: str, wanted: Mapping[str, TensorType], got: Mapping[str, TensorType]) -> None:
    """As ``check_state``, for weights that are known only by their types.

    Raises:
        BundleError: The first difference.
    """
    if set(wanted) != set(got):
        raise BundleError(f"{owner}: expected tensors {_names(wanted)}, got {_names(got)}.")
    for name in sorted(wanted):
        if wanted[name] != got[name]:
            raise BundleError(f"{owner}: tensor '{name}': expected {_format(wanted[name])}, got {_format(got[name])}.")


def write_types(types: Mapping[str, TensorType]) -> str:
    """The types as JSON text, for a program's property ``weights``."""
    return json.dumps(types, sort_keys=True, separators=(",", ":"))


def read_types(owner: str, text: str) -> dict[str, TensorType]:
    """Read what ``write_types`` returned.

    Raises:
        BundleError: It is something else.
    """
    wrong = BundleError(f"{owner}: weights: expected the JSON text of {{name: [dtype, sizes]}}.")
    try:
        values = parse_json(text.encode())
    except WrongValueError:
        raise wrong from None
    types: dict[str, TensorType] = {}
    for name, value in values.items() if isinstance(values, dict) else [("", values)]:
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], list):
            raise wrong
        sizes = [size for item in value[1] if (size := plain_size(item)) is not None]
        if len(sizes) != len(value[1]) or value[0] not in DTYPE_NAMES.values():
            raise wrong
        types[name] = (value[0], tuple(sizes))
    return types


def _names(types: Mapping[str, TensorType]) -> str:
    return f"[{', '.join(sorted(types))}]"


def _format(kind: TensorType) -> str:
    return f"{kind[0]} {list(kind[1])}"


def dtype_name(tensor: Tensor) -> str:
    """``float32``, as the manifest writes it."""
    return str(tensor.dtype).removeprefix("torch.")
