"""State dict <-> safetensors, with a strict reader in front: ``docs/bundle.md`` states its rules."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from regplug.errors import BundleError, ExportError
from regplug.strict import DuplicateKeyError, WrongValueError, parse_json, plain_digits

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_HEADER = 1 << 20
MAX_TENSORS = 4096
MAX_RANK = 8
TENSOR_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")
ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
TORCH_WORDS = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
DTYPE_NAMES = dict(zip(ITEM_SIZES, TORCH_WORDS, strict=True))
METADATA_KEY = "regplug"

TensorType = tuple[str, tuple[int, ...]]  # dtype in torch's words, sizes


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file: its dtype (``F32``), shape, and place in the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes stand in a safetensors file, counted from the file's begin."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class _Malformed(Exception):
    """A rule of ``docs/bundle.md`` and what broke it."""


def read_header(owner: str, data: bytes) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, after every rule is checked.

    Args:
        owner: The file, for messages.
        data: All of its bytes.

    Raises:
        BundleError: A rule is broken; the message names it.
    """
    try:
        return _read_header(data)
    except _Malformed as error:
        raise BundleError(f"{owner}: {error}.") from None


def _read_header(data: bytes) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    if len(data) < 8:
        raise _Malformed(f"size: expected at least 8 bytes, got {len(data)}")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER or length > len(data) - 8:
        raise _Malformed(f"size: expected a header inside the file and within {MAX_HEADER} bytes, got {length}")
    header = _parse(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Malformed("metadata: expected strings")
    if len(header) > MAX_TENSORS:
        raise _Malformed(f"name: expected at most {MAX_TENSORS} tensors, got {len(header)}")
    tensors = {name: _tensor_info(name, entry) for name, entry in header.items()}
    end = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != end:
            raise _Malformed(f"offsets: tensor '{name}': expected begin {end}, got {info.begin}")
        end = info.end
    if end != len(data) - 8 - length:
        raise _Malformed(f"offsets: expected tensors over {len(data) - 8 - length} bytes, got {end}")
    return tensors, metadata


def _parse(header: bytes) -> dict[str, Any]:
    if not header.startswith(b"{"):
        raise _Malformed("header: expected a JSON object that begins with '{'")

    try:
        return parse_json(header.rstrip(b" "))  # type: ignore[no-any-return]
    except DuplicateKeyError as error:
        raise _Malformed(f"duplicate: {error}") from None
    except WrongValueError:
        raise _Malformed("header: expected a JSON object in UTF-8") from None


def _tensor_info(name: str, entry: object) -> TensorInfo:
    if not TENSOR_NAME.fullmatch(name):
        raise _Malformed("name: expected letters, digits, '_', '.' and '-' (at most 256)")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _Malformed(f"tensor: tensor '{name}': expected exactly dtype, shape and data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise _Malformed(f"dtype: tensor '{name}': expected one of {', '.join(ITEM_SIZES)}")
    sizes = _integers(entry["shape"])
    if sizes is None or len(sizes) > MAX_RANK or prod(filter(None, sizes)) * ITEM_SIZES[dtype] >= 1 << 63:
        raise _Malformed(f"shape: tensor '{name}': expected at most {MAX_RANK} sizes without overflow")
    offsets = _integers(entry["data_offsets"])
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Malformed(f"offsets: tensor '{name}': expected two integers, begin <= end")
    begin, end = offsets
    nbytes = prod(sizes) * ITEM_SIZES[dtype]
    if end - begin != nbytes:
        raise _Malformed(f"bytes: tensor '{name}': expected {nbytes} bytes, got {end - begin}")
    if begin % ITEM_SIZES[dtype]:
        raise _Malformed(f"alignment: tensor '{name}': expected a multiple of {ITEM_SIZES[dtype]}, got {begin}")
    return TensorInfo(dtype, tuple(sizes), begin, end)


def _integers(values: object) -> list[int] | None:
    """The list's numbers, if all are plain digits without a sign."""
    if not isinstance(values, list):
        return None
    numbers = [number for value in values if (number := plain_digits(value)) is not None and number >= 0]
    return numbers if len(numbers) == len(values) else None


def stored_tensors(owner: str, data: bytes) -> dict[str, StoredTensor]:
    """Where each tensor of a safetensors file stands, sorted by name; dtypes in torch's words (``float32``).

    Raises:
        BundleError: The file breaks a rule of ``docs/bundle.md``.
    """
    tensors, _ = read_header(owner, data)
    begin = 8 + int.from_bytes(data[:8], "little")
    return {
        name: StoredTensor(DTYPE_NAMES[info.dtype], info.shape, begin + info.begin, info.end - info.begin)
        for name, info in sorted(tensors.items())
    }


def load_tensors(owner: str, data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in its order by name.

    Raises:
        BundleError: The file breaks a rule of ``docs/bundle.md``.
    """
    from safetensors.torch import load

    read_header(owner, data)
    return dict(sorted(load(data).items()))


def save_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> bytes:
    """A safetensors file, with ``metadata`` as sorted JSON under the one key ``regplug``."""
    from safetensors.torch import save

    # one key only: safetensors writes its metadata keys in an order that changes from process to process
    text = None if metadata is None else {METADATA_KEY: json.dumps(metadata, sort_keys=True, allow_nan=False)}
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=text)


def read_metadata(owner: str, data: bytes) -> dict[str, Any]:
    """What a weights file of regplug says of itself; empty for one that says nothing.

    Raises:
        BundleError: The file breaks a rule, or its ``regplug`` metadata is no JSON object.
    """
    text = read_header(owner, data)[1].get(METADATA_KEY)
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise BundleError(f"{owner}: metadata: expected a JSON object under {METADATA_KEY!r}.")
    return values


def state_of(owner: str, module: nn.Module) -> dict[str, Tensor]:
    """The module's state dict on the CPU, if it is all there is to know of the module.

    Raises:
        ExportError: A non-persistent buffer, a tensor outside the state dict, tied weights, a tensor subclass,
            or a tensor that safetensors cannot hold; named.
    """
    import torch

    state = module.state_dict()
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
            raise ExportError(f"{owner}: expected weights of their own, got {storages[pointer]!r} tied to {name!r}.")
        storages[pointer] = name
    return {name: tensor.detach().cpu() for name, tensor in state.items()}


def _check_storable(owner: str, name: str, tensor: object) -> None:
    import torch
    from torch import nn

    if not isinstance(tensor, torch.Tensor):
        raise ExportError(f"{owner}: state {name!r}: expected a tensor, got {type(tensor).__name__}.")
    # torch saves some subclasses (quantised weights, say) as zeros, without a word
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.is_quantized:
        raise ExportError(f"{owner}: tensor {name!r}: expected a plain tensor, got {type(tensor).__name__}.")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex():
        raise ExportError(f"{owner}: tensor {name!r}: expected a dense real tensor with data, got {tensor.dtype}.")
    if not TENSOR_NAME.fullmatch(name):
        raise ExportError(f"{owner}: tensor {name!r}: expected a name of letters, digits, '_', '.' and '-'.")


def load_state(owner: str, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set all weights of ``module`` after names, shapes and dtypes are compared: all of them, or none.

    Raises:
        BundleError: They do not fit.
    """
    check_state(owner, types_of(module.state_dict()), state)
    module.load_state_dict(dict(state), strict=True)


def types_of(state: Mapping[str, Tensor]) -> dict[str, TensorType]:
    """Dtype and sizes of each tensor, sorted by name."""
    return {name: (dtype_name(tensor), tuple(tensor.shape)) for name, tensor in sorted(state.items())}


def check_state(owner: str, wanted: Mapping[str, TensorType], state: Mapping[str, Tensor]) -> None:
    """Refuse weights whose names, shapes or dtypes are not those that are wanted.

    Raises:
        BundleError: The first difference.
    """
    got = types_of(state)
    if set(wanted) != set(got):
        raise BundleError(f"{owner}: expected tensors {_names(wanted)}, got {_names(got)}.")
    for name in sorted(wanted):
        if wanted[name] != got[name]:
            raise BundleError(f"{owner}: tensor '{name}': expected {_spell(wanted[name])}, got {_spell(got[name])}.")


def write_types(types: Mapping[str, TensorType]) -> str:
    """The types as the JSON text of a program's property ``weights``."""
    return json.dumps(types, sort_keys=True, separators=(",", ":"))


def read_types(owner: str, text: str) -> dict[str, TensorType]:
    """What ``write_types`` wrote.

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
        sizes = _integers(value[1]) if isinstance(value, list) and len(value) == 2 else None
        if sizes is None or value[0] not in DTYPE_NAMES.values():
            raise wrong
        types[name] = (value[0], tuple(sizes))
    return types


def _names(types: Mapping[str, TensorType]) -> str:
    return f"[{', '.join(sorted(types))}]"


def _spell(kind: TensorType) -> str:
    return f"{kind[0]} {list(kind[1])}"


def dtype_name(tensor: Tensor) -> str:
    """``float32``, as the manifest writes it."""
    return str(tensor.dtype).removeprefix("torch.")
