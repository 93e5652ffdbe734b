"""Opens a whole network's checkpoint as data: safetensors, or a PyTorch file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from regplug.commands.import_checkpoint.checkpoint_file import (
    DamagedError,
    OpenFile,
    Place,
    safetensors_places,
    shapes_of,
)
from regplug.commands.import_checkpoint.pytorch_file import PyTorchState, read_archive, read_whole
from regplug.commands.import_checkpoint.shards import read_index
from regplug.commands.import_checkpoint.state_names import MAX_LISTED, all_prefixes, own_names
from regplug.errors import BundleError, SpecError
from regplug.format.folder import opened_file
from regplug.format.wrong_path import instead_of_checkpoint

MAX_HEADER = 16 << 20  # of safetensors: 100,000 tensors; the format's own limit takes 15 s and 2 GB to read


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint; each tensor is read when it is asked for.

    Args:
        path: The file.
        kind: ``"safetensors"`` or ``"PyTorch"``.
        state_key: The key that has the weights; None for the top level.
        other_keys: Keys that have weights too, and are not read.
        shapes: The shape of each tensor, by its name without the parts that ``torch.compile`` adds.
        names: Those names, each with the name in the file.
        nbytes: The bytes of all tensors together.
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
        """A copy of one tensor, on the CPU, in the file's dtype.

        Raises:
            BundleError: The tensor claims to be larger than all tensors of the file, or the file has changed.
        """
        found = self._places[self.names[name]]
        if isinstance(found, tuple):
            raise BundleError(f"checkpoint {self.path}: tensor {name!r}: expected a dtype that torch has, got another.")
        like = found.like if isinstance(found, Place) else found
        if like.nbytes > self.nbytes:  # one number in the file may be expanded to any shape
            raise BundleError(
                f"checkpoint {self.path}: tensor {name!r}: expected at most {self.nbytes} bytes, got {like.nbytes}."
            )
        tensor = found.read(self._files[self.names[name]]) if isinstance(found, Place) else found
        return tensor.detach().clone(memory_format=torch.contiguous_format)


def without_prefix(checkpoint: Checkpoint, prefix: str) -> Checkpoint:
    """The tensors of a checkpoint under a prefix such as ``"ema_model."``, named without it.

    Raises:
        SpecError: No name begins with the prefix.
    """
    prefix = prefix if prefix.endswith(".") or not prefix else f"{prefix}."
    kept = {bare: name for bare, name in checkpoint.names.items() if bare.startswith(prefix)}
    if not kept:
        known = ", ".join(all_prefixes(checkpoint.names)[1 : MAX_LISTED + 1])
        raise SpecError(
            f"checkpoint {checkpoint.path}: --prefix: expected what names begin with ({known}), got {prefix!r}."
        )
    shapes = {bare.removeprefix(prefix): checkpoint.shapes[bare] for bare in kept}
    return replace(checkpoint, shapes=shapes, names={bare.removeprefix(prefix): name for bare, name in kept.items()})


def open_checkpoint(path: str | os.PathLike[str], state_key: str | None = None) -> Checkpoint:
    """Open a checkpoint; its first bytes decide which format it has.

    A PyTorch file is always read with ``weights_only=True``: no pickled code runs. Safetensors, and PyTorch files in
    today's format without quantized tensors, are read from the disk in parts, as tensors are asked for. The file stays
    open: a file that replaces it at its path is ignored, and one that is changed in place is refused.

    Args:
        path: A safetensors file, the index of a sharded one, or a file that ``torch.save`` wrote: a mapping of names
            to tensors, at the top or under one of ``STATE_KEYS``.
        state_key: The key that has the weights, ``"ema"``; dotted if it is a key in a key. Found when None.

    Raises:
        BundleError: It is missing, not a regular file, damaged, not a checkpoint, or holds pickled code.
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
                f"{owner}: --state-key: expected none with safetensors, which has no keys, got {state_key!r}."
            )
        if known := "" if safetensors or head.startswith(b"PK") else instead_of_checkpoint(path):
            raise BundleError(f"{owner}: {known}.")
        if head[:1] == b"{" and not safetensors:
            return _open_shards(owner, path, file)
        if safetensors:
            return _open_safetensors(owner, path, file, int.from_bytes(head[:8], "little"))
        if head.startswith(b"PK\3\4"):
            return _open_pytorch(path, file, read_archive(owner, file, state_key))
        if head.startswith(b"\x80"):
            return _open_pytorch(path, file, read_whole(owner, file, state_key, zipped=False))
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
            verb = "it lacks" if different[0] in named else "it also has"
            raise BundleError(f"{who}: expected the tensors that the index names, got others: {verb} {different[0]!r}.")
        nbytes += opened.size - 8 - int.from_bytes(bytes(opened.read(0, 8)), "little")
        places |= held
        files |= dict.fromkeys(held, opened)
    names, shapes = own_names(owner, places), shapes_of(places)
    sizes = {bare: shapes[name] for bare, name in names.items()}
    return Checkpoint(path, f"safetensors in {len(shards)} files", None, (), sizes, names, nbytes, files, places)


def _open_pytorch(path: str, file: OpenFile, found: PyTorchState) -> Checkpoint:
    names = own_names(file.owner, found.tensors)
    shapes = {bare: tuple(found.tensors[name].shape) for bare, name in names.items()}
    # tied weights are once in the file, and several times in the sum
    nbytes = min(file.size, sum(tensor.nbytes for tensor in found.tensors.values()))
    files = dict.fromkeys(found.places, file)
    return Checkpoint(path, "PyTorch", found.key, found.other_keys, shapes, names, nbytes, files, found.places)
