"""Reads a PyTorch file as data: where its tensors are, without running what is pickled in it."""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from regplug.commands.import_checkpoint.checkpoint_file import DamagedError, OpenFile, Place, TorchArchive
from regplug.commands.import_checkpoint.pickle_nesting import DeepPickleError, check_nesting
from regplug.commands.import_checkpoint.state_names import MAX_LISTED, listed
from regplug.errors import BundleError, SpecError, closest, one_line
from regplug.torch_private import place_in_outline

# where training programs keep a network's weights, tried in this order, before the top level itself
STATE_KEYS = (
    *("state_dict", "model_state_dict", "model"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"),
)
PICKLED = re.compile(r"GLOBAL ([\w.]+)|(?:unrecognized|unsupported) \w+ ([\w.]+)")  # torch's messages name the class
PICKLES = 5  # of a file from before 2020: two numbers, the system, the weights, the names of their storages


@dataclass(frozen=True)
class PyTorchState:
    """The weights of a PyTorch file.

    Args:
        key: The key that has them; None for the top level.
        other_keys: Keys that have weights too, and are not read.
        tensors: Each tensor, by name; on the meta device where it was not read.
        places: Where each tensor is in the file, or the tensor itself where it was read.
    """

    key: str | None
    other_keys: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    places: Mapping[str, Place | Tensor]


def read_archive(owner: str, file: OpenFile, state_key: str | None) -> PyTorchState:
    """A PyTorch file in today's format: the pickle is read now, each tensor when it is asked for.

    Raises:
        BundleError: It is damaged, or holds more than data.
        SpecError: There are no weights under ``state_key``.
    """
    try:
        archive = TorchArchive(file, _members(owner, file))
        outline = io.BytesIO(archive.outline())
        try:
            content = _unpickled(owner, outline, "meta")
        except BundleError as error:
            if isinstance(error.__cause__, NotImplementedError):  # quantized tensors, which the meta device lacks
                return read_whole(owner, file, state_key, zipped=True)
            raise
        key, state, others = _state_in(owner, content, state_key)
        return PyTorchState(key, others, state, {name: archive.place_of(tensor) for name, tensor in state.items()})
    except DamagedError as error:
        raise BundleError(f"{owner}: expected a PyTorch file, got a damaged archive ({error}).") from None


def read_whole(owner: str, file: OpenFile, state_key: str | None, *, zipped: bool) -> PyTorchState:
    """A PyTorch file that cannot be read in parts, such as one from before 2020: it is read now.

    Raises:
        BundleError: It is damaged, or holds more than data.
        SpecError: There are no weights under ``state_key``.
    """
    with file.stream() as stream:
        stream.seek(0)
        if not zipped:  # an archive's pickle was checked before
            _check_pickles(owner, stream)
            stream.seek(0)
        key, state, others = _state_in(owner, _unpickled(owner, stream, "cpu"), state_key)
    return PyTorchState(key, others, state, state)


def _check_pickles(owner: str, stream: BinaryIO) -> None:
    try:
        for _ in range(PICKLES):
            check_nesting(stream)
            begin = stream.tell()
            if not stream.read(1):  # torch itself refuses a file with fewer pickles
                return
            stream.seek(begin)
    except DeepPickleError as error:
        raise BundleError(f"{owner}: expected a PyTorch file, got a damaged one ({error}).") from error


def _members(owner: str, file: OpenFile) -> list[zipfile.ZipInfo]:
    """An archive's members; refuses an archive that ``torch.save`` did not write."""
    try:
        with file.stream() as stream, zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise BundleError(f"{owner}: expected a PyTorch file, got a damaged archive ({one_line(error)}).") from error
    names = {member.filename.rpartition("/")[2] for member in members}
    if "constants.pkl" in names:
        raise BundleError(f"{owner}: expected weights, got a TorchScript program, which is code; use its state_dict.")
    if "data.pkl" not in names:
        raise BundleError(f"{owner}: expected a PyTorch file, got another archive, of {listed(names)}.")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise BundleError(f"{owner}: expected an archive as torch.save writes it, got a compressed one; save it again.")
    return members


def _unpickled(owner: str, source: BinaryIO, device: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a pickle protocol that is then refused
            return torch.load(source, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        found = PICKLED.search(str(error))
        what = f"pickled code ({found[1] or found[2]})" if found else "a pickle that is more than data"
        raise BundleError(
            f"{owner}: expected weights and plain values, got {what}, and ran nothing of it; "
            "if you trust the file, load it and save its state_dict as safetensors."
        ) from error
    except Exception as error:  # on damaged bytes torch may raise anything
        reason = one_line(error).rstrip(".")
        raise BundleError(
            f"{owner}: expected a PyTorch file, got a damaged one ({type(error).__name__}: {reason})."
        ) from error


def _state_in(owner: str, content: Any, state_key: str | None) -> tuple[str | None, dict[str, Tensor], tuple[str, ...]]:
    """The key that has the weights, the weights, and the other keys that have weights."""
    if not isinstance(content, Mapping):
        raise BundleError(f"{owner}: expected a mapping of names to tensors, got {type(content).__name__}.")
    if state_key is not None:
        under = _keys_with_tensors(content)
        if state_key not in under:
            raise SpecError(
                f"{owner}: --state-key: expected a key with tensors, got {state_key!r}{closest(state_key, [*under])}."
            )
        return state_key, under[state_key], tuple(key for key in under if key != state_key)
    places: list[tuple[str | None, Any]] = [(key, content.get(key)) for key in STATE_KEYS]
    found = [(key, state) for key, place in [*places, (None, content)] if (state := _tensors_of(place))]
    if not found:
        known = ", ".join(STATE_KEYS)
        keys = listed(map(str, content)) or "nothing"
        nested = ""
        if inner := _keys_with_tensors(content):
            nested = f"; use --state-key {' or '.join([*inner][:MAX_LISTED])}"
        raise BundleError(f"{owner}: expected tensors at the top or under one of {known}, got {keys}{nested}.")
    key, state = found[0]
    return key, state, tuple(other for other, _ in found[1:] if other is not None)


def _keys_with_tensors(content: Mapping[Any, Any]) -> dict[str, dict[str, Tensor]]:
    """The tensors under each key, and under each key of a mapping in it."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= {str(key): tensors} if (tensors := _tensors_of(value)) else {}
            found |= {f"{key}.{inner}": tensors for inner, one in value.items() if (tensors := _tensors_of(one))}
    return found


def _tensors_of(values: Any) -> dict[str, Tensor]:
    if not isinstance(values, Mapping):
        return {}
    return {
        name: tensor
        for name, tensor in values.items()
        if isinstance(name, str)
        and type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not tensor.is_quantized
        and (not tensor.is_meta or place_in_outline(tensor) is not None)
    }
