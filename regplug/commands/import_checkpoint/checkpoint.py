"""Opens a whole network's checkpoint as data: safetensors, or a PyTorch file without running what is pickled in it."""

from __future__ import annotations

import io
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from regplug.commands.import_checkpoint.checkpoint_file import (
    DamagedError,
    OpenFile,
    Place,
    TorchArchive,
    safetensors_places,
    shapes_of,
)
from regplug.commands.import_checkpoint.pickle_nesting import DeepPickleError, check_nesting
from regplug.commands.import_checkpoint.shards import read_index
from regplug.commands.import_checkpoint.state_names import SHOWN, all_prefixes, listed, own_names
from regplug.errors import BundleError, SpecError, closest, one_line
from regplug.format.folder import opened_file
from regplug.format.mistaken import instead_of_checkpoint
from regplug.torch_private import place_in_outline

# where training programs keep a network's weights, tried in this order, before the top level itself
STATE_KEYS = (
    *("state_dict", "model_state_dict", "model"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"),
)
MAX_HEADER = 16 << 20  # of safetensors: 100,000 tensors; its own limit takes 15 s and 2 GB to read
PICKLED = re.compile(r"GLOBAL ([\w.]+)|(?:unrecognized|unsupported) \w+ ([\w.]+)")
PICKLES = 5  # of a file of before 2020: two numbers, what wrote it, the weights, the names of their storages


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint; its tensors are read one by one, when they are asked for.

    Args:
        path: The file.
        kind: ``"safetensors"`` or ``"PyTorch"``.
        state_key: The key that has the weights; None for the top level.
        other_keys: Where there are weights too, that are not looked at.
        shapes: Of each tensor, by its name without what ``torch.compile`` put in.
        names: Those names, each with the one that the file has.
        nbytes: All tensors' bytes together.
    """

    path: str
    kind: str
    state_key: str | None
    other_keys: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    names: Mapping[str, str]
    nbytes: int
    _files: Mapping[str, OpenFile]
    _places: Mapping[str, Place | Tensor | tuple[int, ...]]

    def read(self, name: str) -> Tensor:
        """A copy of one tensor, on the CPU, in the dtype that the file has.

        Raises:
            BundleError: The tensor claims to be larger than all that the file holds, or the file has changed.
        """
        found = self._places[self.names[name]]
        if isinstance(found, tuple):
            raise BundleError(f"checkpoint {self.path}: tensor {name!r}: expected a dtype that torch has, got another.")
        like = found.like if isinstance(found, Place) else found
        if like.nbytes > self.nbytes:  # one number in the file may be spread over any shape
            raise BundleError(
                f"checkpoint {self.path}: tensor {name!r}: expected at most {self.nbytes} bytes, got {like.nbytes}."
            )
        tensor = found.read(self._files[self.names[name]]) if isinstance(found, Place) else found
        return tensor.detach().clone(memory_format=torch.contiguous_format)


def behind(checkpoint: Checkpoint, prefix: str) -> Checkpoint:
    """The part of a checkpoint whose names begin with a prefix, ``"ema_model."``, which is taken off.

    Raises:
        SpecError: No name does.
    """
    prefix = prefix if prefix.endswith(".") or not prefix else f"{prefix}."
    kept = {bare: name for bare, name in checkpoint.names.items() if bare.startswith(prefix)}
    if not kept:
        known = ", ".join(all_prefixes(checkpoint.names)[1 : SHOWN + 1])
        raise SpecError(
            f"checkpoint {checkpoint.path}: --prefix: expected what names begin with ({known}), got {prefix!r}."
        )
    shapes = {bare.removeprefix(prefix): checkpoint.shapes[bare] for bare in kept}
    return replace(checkpoint, shapes=shapes, names={bare.removeprefix(prefix): name for bare, name in kept.items()})


def open_checkpoint(path: str | os.PathLike[str], state_key: str | None = None) -> Checkpoint:
    """Open a checkpoint; what it is is decided by its first bytes.

    A PyTorch file is read with ``weights_only=True`` and nothing weaker: no pickled code runs. Of safetensors, and of
    a PyTorch file in today's format without quantized tensors, only what is asked for is read from the disk. The file
    stays open: another that is put at its path is not looked at, and one that is changed in place is refused.

    Args:
        path: A safetensors file, the index of a sharded one, or a file that ``torch.save`` wrote: a mapping of names
            to tensors, at the top or under one of ``STATE_KEYS``.
        state_key: The key under which the weights are, ``"ema"``, dotted where it is a key in a key; found when None.

    Raises:
        BundleError: It is missing, no regular file, damaged, no checkpoint, or holds pickled code.
        SpecError: There are no weights under ``state_key``.
    """
    path = os.fspath(path)
    owner = f"checkpoint {path}"
    with opened_file(owner, path) as descriptor:
        head = os.pread(descriptor, 16, 0)
        file = OpenFile(owner, descriptor)
        safetensors = head[8:9] == b"{" and b"\0" in head[:8]
        if state_key is not None and (safetensors or head[:1] == b"{"):
            raise SpecError(
                f"{owner}: --state-key: expected none of safetensors, which has no keys, got {state_key!r}."
            )
        if known := "" if safetensors or head.startswith(b"PK") else instead_of_checkpoint(path):
            raise BundleError(f"{owner}: {known}.")
        if head[:1] == b"{" and not safetensors:
            return _open_shards(owner, path, file)
        if safetensors:
            return _open_safetensors(owner, path, file, int.from_bytes(head[:8], "little"))
        if head.startswith(b"PK\3\4"):
            return _open_archive(owner, path, file, state_key)
        if head.startswith(b"\x80"):
            return _open_whole(owner, path, file, state_key, zipped=False)
    begin = f"one that begins with {head!r}" if head else "an empty one"
    raise BundleError(f"{owner}: expected a safetensors file, or one that torch.save wrote, got {begin}.")


def _open_safetensors(owner: str, path: str, file: OpenFile, header: int) -> Checkpoint:
    if header > MAX_HEADER:
        raise BundleError(f"{owner}: expected a safetensors header of at most {MAX_HEADER} bytes, got {header}.")
    try:
        places = safetensors_places(file, MAX_HEADER)
    except DamagedError as error:
        raise BundleError(f"{owner}: expected a safetensors file, got a damaged one ({error}).") from None
    names, shapes = own_names(owner, places), shapes_of(places)
    sizes = {bare: shapes[name] for bare, name in names.items()}
    files = dict.fromkeys(places, file)
    return Checkpoint(path, "safetensors", None, (), sizes, names, file.size - 8 - header, files, places)


def _open_shards(owner: str, path: str, file: OpenFile) -> Checkpoint:
    """Safetensors files that an index names, each in the index's own folder."""
    try:
        shards = read_index(file)
    except DamagedError as error:
        raise BundleError(f"{owner}: expected the index of sharded safetensors, got a damaged one ({error}).") from None
    places: dict[str, Place | tuple[int, ...]] = {}
    files: dict[str, OpenFile] = {}
    nbytes = 0
    for shard, named in shards.items():
        who = f"{owner}: {shard}"
        with opened_file(who, str(Path(path).parent / shard)) as descriptor:
            opened = OpenFile(who, descriptor)
        try:
            held = safetensors_places(opened, MAX_HEADER)
        except DamagedError as error:
            raise BundleError(f"{who}: expected a safetensors file, got a damaged one ({error}).") from None
        if different := sorted(set(held) ^ named):
            verb = "it lacks" if different[0] in named else "it holds besides"
            raise BundleError(f"{who}: expected the tensors that the index names, got others: {verb} {different[0]!r}.")
        nbytes += opened.size - 8 - int.from_bytes(bytes(opened.read(0, 8)), "little")
        places |= held
        files |= dict.fromkeys(held, opened)
    names, shapes = own_names(owner, places), shapes_of(places)
    sizes = {bare: shapes[name] for bare, name in names.items()}
    return Checkpoint(path, f"safetensors in {len(shards)} files", None, (), sizes, names, nbytes, files, places)


def _open_archive(owner: str, path: str, file: OpenFile, state_key: str | None) -> Checkpoint:
    """A PyTorch file in today's format: the pickle is read now, each tensor when it is asked for."""
    try:
        archive = TorchArchive(file, _members(owner, file))
        outline = io.BytesIO(archive.outline())
        try:
            content = _unpickled(owner, outline, "meta")
        except BundleError as error:
            if isinstance(error.__cause__, NotImplementedError):  # quantized tensors, which the meta device has not
                return _open_whole(owner, path, file, state_key, zipped=True)
            raise
        key, state, others = _state_in(owner, content, state_key)
        places = {name: archive.place_of(tensor) for name, tensor in state.items()}
    except DamagedError as error:
        raise BundleError(f"{owner}: expected a PyTorch file, got a damaged archive ({error}).") from None
    return _checkpoint(owner, path, file, key, others, state, places)


def _open_whole(owner: str, path: str, file: OpenFile, state_key: str | None, *, zipped: bool) -> Checkpoint:
    """A PyTorch file of which no part can be read alone, as those of before 2020: it is read now."""
    with file.stream() as stream:
        stream.seek(0)
        if not zipped:  # an archive's pickle was looked at
            _check_pickles(owner, stream)
            stream.seek(0)
        key, state, others = _state_in(owner, _unpickled(owner, stream, "cpu"), state_key)
    return _checkpoint(owner, path, file, key, others, state, state)


def _check_pickles(owner: str, stream: BinaryIO) -> None:
    try:
        for _ in range(PICKLES):
            check_nesting(stream)
            begin = stream.tell()
            if not stream.read(1):  # no file of torch's, which says so itself
                return
            stream.seek(begin)
    except DeepPickleError as error:
        raise BundleError(f"{owner}: expected a PyTorch file, got a damaged one ({error}).") from error


def _checkpoint(
    owner: str,
    path: str,
    file: OpenFile,
    key: str | None,
    others: tuple[str, ...],
    state: Mapping[str, Tensor],
    places: Mapping[str, Place | Tensor],
) -> Checkpoint:
    names = own_names(owner, state)
    shapes = {bare: tuple(state[name].shape) for bare, name in names.items()}
    # tied weights count once in the file, and each time in the sum
    nbytes = min(file.size, sum(tensor.nbytes for tensor in state.values()))
    return Checkpoint(path, "PyTorch", key, others, shapes, names, nbytes, dict.fromkeys(places, file), places)


def _members(owner: str, file: OpenFile) -> list[zipfile.ZipInfo]:
    """An archive's members; one that is no archive of ``torch.save`` is refused."""
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
        raise BundleError(f"{owner}: expected an archive as torch.save writes it, got a compressed one; save it anew.")
    return members


def _unpickled(owner: str, source: BinaryIO, device: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle protocol that is then refused
            return torch.load(source, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        found = PICKLED.search(str(error))
        what = f"pickled code ({found[1] or found[2]})" if found else "a pickle that is more than data"
        raise BundleError(
            f"{owner}: expected weights and plain values, got {what}, and ran nothing of it; "
            "open it where you trust it, and save its state_dict as safetensors."
        ) from error
    except Exception as error:  # torch reads bytes of anybody, and fails in any way
        reason = one_line(error).rstrip(".")
        raise BundleError(
            f"{owner}: expected a PyTorch file, got a damaged one ({type(error).__name__}: {reason})."
        ) from error


def _state_in(owner: str, content: Any, state_key: str | None) -> tuple[str | None, dict[str, Tensor], tuple[str, ...]]:
    """The key that has the weights, the weights, and the other keys that have some."""
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
            nested = f"; use --state-key {' or '.join([*inner][:SHOWN])}"
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
