"""Reads parts of a checkpoint's file without mapping it.

A process crashes when another one truncates a file that it has mapped.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import weakref
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import torch
from torch import Tensor

from regplug.commands.import_checkpoint.pickle_nesting import DeepPickleError, check_nesting
from regplug.errors import BundleError
from regplug.torch_private import place_in_outline

# safetensors' names of the dtypes that torch has
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
}  # fmt: skip
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, lengths of the fields before its bytes
MAX_RANK = 64
MAX_DETAIL = 200  # characters of a message
PART = 1 << 30  # one call reads at most 2 GiB


class DamagedError(Exception):
    """A checkpoint's file is damaged; the message says how."""


class OpenFile:
    """A file's bytes, readable while the object lives, even if the path is removed or replaced.

    Args:
        owner: The checkpoint, for messages.
        descriptor: The open file; it stays the caller's to close.
    """

    def __init__(self, owner: str, descriptor: int) -> None:
        self.owner = owner
        self._descriptor = os.dup(descriptor)
        weakref.finalize(self, os.close, self._descriptor)
        self._state = self._now()
        self.size, _ = self._state

    def read(self, begin: int, nbytes: int) -> bytearray:
        """``nbytes`` bytes from ``begin`` on.

        Raises:
            BundleError: The file is shorter, or has changed since it was opened.
        """
        try:
            if not 0 <= begin <= begin + nbytes <= self.size:
                raise BundleError(
                    f"{self.owner}: expected {nbytes} bytes at {begin}, got a file of {self.size} bytes; save it again."
                )
            data = bytearray(nbytes)
            view, done = memoryview(data), 0
            while done < nbytes and (read := os.preadv(self._descriptor, [view[done : done + PART]], begin + done)):
                done += read
            if done < nbytes or self._now() != self._state:
                raise BundleError(f"{self.owner}: changed while it was read; try again when nothing writes it.")
        except OSError as error:
            raise BundleError(f"{self.owner}: {error.strerror}.") from error
        except MemoryError:
            raise BundleError(f"{self.owner}: expected memory for {nbytes} bytes, got none.") from None
        return data

    def stream(self) -> BinaryIO:
        """The file as a stream; the caller closes it."""
        return os.fdopen(os.dup(self._descriptor), "rb")

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Place:
    """Where a tensor's numbers are in a file.

    Args:
        like: A tensor on the meta device, with the same dtype, sizes, strides and storage offset.
        begin: Where its storage begins.
        end: Where its storage ends, at most.
        other_order: Whether its numbers have the other byte order than this machine's.
    """

    like: Tensor
    begin: int
    end: int
    other_order: bool = False

    def read(self, file: OpenFile) -> Tensor:
        """The tensor, in new memory.

        Raises:
            BundleError: It ends after its storage, or cannot be read.
        """
        like, item = self.like, self.like.element_size()
        if not like.numel():
            return torch.empty(like.shape, dtype=like.dtype, device="cpu")
        steps = (step * (size - 1) for size, step in zip(like.shape, like.stride(), strict=True))
        first = self.begin + int(like.storage_offset()) * item
        nbytes = (sum(steps) + 1) * item
        if first + nbytes > self.end:
            raise BundleError(
                f"{file.owner}: expected a tensor within the {self.end - self.begin} bytes of its storage, got one "
                f"that ends at {first + nbytes - self.begin}."
            )
        storage = torch.frombuffer(file.read(first, nbytes), dtype=torch.uint8).untyped_storage()
        if self.other_order:
            storage.byteswap(like.dtype)
        tensor = torch.empty(0, dtype=like.dtype, device="cpu").set_(storage, 0, like.shape, like.stride())
        tensor = tensor.conj().resolve_conj() if like.is_conj() else tensor
        return -tensor if like.is_neg() else tensor


def safetensors_places(file: OpenFile, max_header: int) -> dict[str, Place | tuple[int, ...]]:
    """Where each tensor of a safetensors file is; only its sizes if torch lacks the dtype.

    Args:
        file: The file.
        max_header: How many bytes its header may have.

    Raises:
        BundleError: The file cannot be read.
        DamagedError: It is not a safetensors file.
    """
    length = int.from_bytes(file.read(0, 8), "little")
    if length > max_header:
        raise DamagedError(f"a header of {length} bytes, of at most {max_header}")
    if length > file.size - 8:
        raise DamagedError(f"a header of {length} bytes in a file of {file.size}")
    begin = 8 + length
    try:
        header = json.loads(bytes(file.read(8, length)).decode(), object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError):
        raise DamagedError("a header that is no JSON in UTF-8") from None
    if not isinstance(header, dict):
        raise DamagedError("a header that is no JSON object")
    header.pop("__metadata__", None)
    spans = {name: _span(name, entry) for name, entry in header.items()}
    end = 0
    for first, last in sorted(spans.values()):
        if first != end:
            raise DamagedError(f"tensors that leave out or share bytes at {first}")
        end = last
    if begin + end != file.size:
        raise DamagedError(f"tensors over {end} of {file.size - begin} bytes")
    found: dict[str, Place | tuple[int, ...]] = {}
    for name, (first, last) in spans.items():
        shape, dtype = tuple(header[name]["shape"]), DTYPES.get(header[name]["dtype"])
        if dtype is None:
            found[name] = shape
            continue
        if prod(shape) * dtype.itemsize != last - first:
            raise DamagedError(f"{last - first} bytes for a tensor of sizes {list(shape)}"[:MAX_DETAIL])
        like = torch.empty(shape, dtype=dtype, device="meta")
        found[name] = Place(like, begin + first, begin + last)
    return found


def without_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for ``object_pairs_hook``; a duplicate name is a ValueError."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(name)
        found[name] = value
    return found


def _span(name: str, entry: Any) -> tuple[int, int]:
    fits = isinstance(entry, dict) and {"dtype", "shape", "data_offsets"} == set(entry)
    numbers = [entry["shape"], entry["data_offsets"]] if fits else [None]
    if not all(isinstance(one, list) and all(type(n) is int and n >= 0 for n in one) for one in numbers):
        raise DamagedError(f"an entry {name!r:.99} without dtype, shape and data_offsets")
    # torch multiplies the sizes, also those next to a 0
    if len(entry["shape"]) > MAX_RANK or prod(filter(None, entry["shape"])) >= 1 << 59:
        raise DamagedError(f"an entry {name!r:.99} of sizes that no tensor has")
    span = entry["data_offsets"]
    if len(span) != 2 or span[0] > span[1] or not isinstance(entry["dtype"], str):
        raise DamagedError(f"an entry {name!r:.99} without dtype, shape and data_offsets")
    return span[0], span[1]


class TorchArchive:
    """The members of a file that ``torch.save`` wrote.

    Args:
        file: The file.
        members: All its members, none compressed.

    Raises:
        BundleError: The file cannot be read.
        DamagedError: A member is duplicate, or is not where the archive says.
    """

    def __init__(self, file: OpenFile, members: Iterable[zipfile.ZipInfo]) -> None:
        members = list(members)
        self._file = file
        self._members = {member.filename: member for member in members}
        if len(self._members) != len(members):
            raise DamagedError("two members of one name")
        self._root = members[0].filename.partition("/")[0]
        self._at: dict[int, zipfile.ZipInfo] = {}
        order = self._bytes_of("byteorder")
        self._other_order = order in (b"little", b"big") and order != sys.byteorder.encode()

    def outline(self) -> bytes:
        """An archive with the same pickle and empty storages.

        After it is loaded to the meta device, each tensor says where its storage is in the outline, and ``place_of``
        finds the storage in the file. Where a storage is in the file itself, torch may compute by the rules of its own
        writer, which other writers do not follow.

        Raises:
            BundleError: The file cannot be read.
            DamagedError: The file has no pickle.
        """
        pickled = self._bytes_of("data.pkl")
        if pickled is None:
            raise DamagedError(f"no member {self._root}/data.pkl")
        try:
            check_nesting(io.BytesIO(pickled))
        except DeepPickleError as error:
            raise DamagedError(str(error)) from error
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr("outline/data.pkl", pickled)
            archive.writestr("outline/version", b"3\n")
            for name, member in self._members.items():
                if name.startswith(f"{self._root}/data/"):
                    storage = zipfile.ZipInfo(f"outline{name.removeprefix(self._root)}")
                    archive.writestr(storage, b"")
                    begin = storage.header_offset + 30 + len(storage.filename.encode()) + len(storage.extra)
                    self._at[begin] = member
        return made.getvalue()

    def place_of(self, tensor: Tensor) -> Place:
        """Where a tensor that was loaded from the outline is in the file.

        Raises:
            BundleError: The file cannot be read.
            DamagedError: Its storage is larger than the file's member.
        """
        member = self._at[place_in_outline(tensor) or 0]
        if tensor.untyped_storage().nbytes() > member.file_size:
            raise DamagedError(
                f"a storage of {tensor.untyped_storage().nbytes()} bytes in a member of {member.file_size}"
            )
        begin = self._begin_of(member)
        return Place(tensor, begin, begin + member.file_size, self._other_order)

    def _bytes_of(self, name: str) -> bytes | None:
        member = self._members.get(f"{self._root}/{name}")
        return None if member is None else bytes(self._file.read(self._begin_of(member), member.file_size))

    def _begin_of(self, member: zipfile.ZipInfo) -> int:
        mark, *lengths = LOCAL_HEADER.unpack(self._file.read(member.header_offset, LOCAL_HEADER.size))
        if mark != b"PK\3\4":
            raise DamagedError(f"no member {member.filename!r:.99} where it should be")
        return int(member.header_offset + LOCAL_HEADER.size + sum(lengths))


def shapes_of(places: Mapping[str, Place | tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The sizes of each tensor."""
    return {name: place if isinstance(place, tuple) else tuple(place.like.shape) for name, place in places.items()}
