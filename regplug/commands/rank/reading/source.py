"""What the kinds of data have in common: labels at once, then inputs or tokens in order, a batch at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from regplug.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

PICTURES, IMAGES, TOKENS, REGISTERS = "pictures", "images", "tokens", "registers"
PARTS = (REGISTERS, "cls", "patches")  # what is kept of a sample's tokens
LABEL_NAMES = ("labels", "label")
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Picture:
    """An image file that was not decoded yet.

    Args:
        owner: Its name in messages.
        open: Gives its path, or an open file.
    """

    owner: str
    open: Callable[[], Path | BinaryIO]


Batch = Sequence[Picture] | Mapping[str, "Tensor"]


class Source(Protocol):
    """n samples on the disk.

    Attributes:
        kind: ``"image folder"``, ``"npz"``, ``"safetensors"`` or ``"Parquet"``.
        content: What batches are: ``PICTURES``, a list of ``Picture``; or tensors by name: ``IMAGES``, ``TOKENS``, or
            ``REGISTERS`` with the other ``PARTS`` that the data have.
        path: Where the data are.
        labels: The samples' labels; see ``targets.make_targets``.
        names: What integer labels are called, if the data say it.
        groups: The samples' groups, or None.
        facts: More facts for the report.
    """

    kind: str
    content: str
    path: Path
    labels: Any
    names: Sequence[str] | None
    groups: Any
    facts: Mapping[str, Any]

    def __len__(self) -> int: ...

    def digest(self) -> str:
        """What changes if the data change: a sha256."""
        ...

    def batches(self, start: int, size: int) -> Iterator[Batch]:
        """The samples from ``start`` on, in order, at most so many in a batch."""
        ...


def owner_of(path: Path) -> str:
    """The data in messages."""
    return f"data {path}"


def digest_of_files(paths: Sequence[Path]) -> str:
    """The sha256 of the content of files."""
    total = hashlib.sha256()
    for path in paths:
        one = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(CHUNK):
                one.update(part)
        total.update(one.digest())
    return total.hexdigest() if len(paths) > 1 else one.hexdigest()


def stamp_of_files(root: Path, paths: Sequence[Path]) -> str:
    """A sha256 of the names, sizes and times of files, which does not read them."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        name = os.fsencode(path.relative_to(root))
        digest.update(b"%s\0%d\0%d\0" % (name, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def chosen_name(owner: str, what: str, given: str | None, known: Sequence[str], defaults: Sequence[str]) -> str:
    """The name of an array or a column: the given one, else the first default that exists.

    Args:
        owner: The data, for messages.
        what: The option that names it, ``"labels"``.
        given: The user's name, or None.
        known: The names that exist.
        defaults: Names to look for.

    Raises:
        SpecError: It does not exist.
    """
    wanted = (given,) if given is not None else defaults
    found = next((name for name in wanted if name in known), None)
    if found is None:
        listed = ", ".join(known[:10]) or "none"
        raise SpecError(
            f"{owner}: {what}: expected {' or '.join(map(repr, wanted))}, got {listed}; name it with --{what}."
        )
    return found
