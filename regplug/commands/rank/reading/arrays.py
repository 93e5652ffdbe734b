"""Arrays by name: which of them are inputs or tokens; and files of safetensors with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from regplug.commands.rank.reading.source import (
    IMAGES,
    LABEL_NAMES,
    PARTS,
    REGISTERS,
    TOKENS,
    chosen_name,
    digest_of_files,
    owner_of,
)
from regplug.errors import SpecError, one_line

SHAPES = {TOKENS: "[n, T, D]", REGISTERS: "[n, R, D]", "cls": "[n, D]", "patches": "[n, D]", IMAGES: "[n, ...]"}
RANKS = {TOKENS: (3, 3), REGISTERS: (3, 3), "cls": (2, 2), "patches": (2, 2), IMAGES: (2, 5)}


@dataclass(frozen=True)
class ArrayPlan:
    """Which arrays are read.

    Args:
        content: ``IMAGES``, ``TOKENS`` or ``REGISTERS``.
        parts: The arrays with a batch's tensors.
        count: Samples.
        labels: The array with the labels.
        groups: The array with the groups, or None.
    """

    content: str
    parts: tuple[str, ...]
    count: int
    labels: str
    groups: str | None


def plan_arrays(owner: str, shapes: Mapping[str, tuple[int, ...]], labels: str | None, groups: str | None) -> ArrayPlan:
    """Which arrays are inputs or tokens, labels and groups.

    Args:
        owner: The data, for messages.
        shapes: The shape of each array.
        labels: The user's name of the labels, or None.
        groups: The user's name of the groups, or None.

    Raises:
        SpecError: There is not exactly one of images, tokens and registers, there are no labels, an array has a wrong
            rank, or the arrays have different numbers of samples.
    """
    found = [name for name in (IMAGES, TOKENS, REGISTERS) if name in shapes]
    if len(found) != 1:
        got = " and ".join(found) or f"none of them ({', '.join(sorted(shapes)[:10]) or 'nothing'})"
        raise SpecError(f"{owner}: expected one of the arrays {IMAGES}, {TOKENS} and {REGISTERS}, got {got}.")
    content = found[0]
    parts = tuple(name for name in PARTS if name in shapes) if content == REGISTERS else (content,)
    label = chosen_name(owner, "labels", labels, list(shapes), LABEL_NAMES)
    group = None if groups is None else chosen_name(owner, "groups", groups, list(shapes), ())
    for name in parts:
        low, high = RANKS[name]
        if not low <= len(shapes[name]) <= high or 0 in shapes[name][1:]:
            raise SpecError(f"{owner}: {name}: expected {SHAPES[name]}, got {list(shapes[name])}.")
    if content == REGISTERS:
        width = shapes[REGISTERS][2]
        wrong = next((name for name in parts[1:] if shapes[name][1] != width), None)
        if wrong is not None:
            raise SpecError(f"{owner}: {wrong}: expected [n, {width}], as registers, got {list(shapes[wrong])}.")
    count = shapes[content][0]
    for name in (*parts, label, *(() if group is None else (group,))):
        if not shapes[name] or shapes[name][0] != count:
            raise SpecError(f"{owner}: {name}: expected {count} samples, as {content}, got {list(shapes[name])}.")
    return ArrayPlan(content, parts, count, label, group)


def check_floats(owner: str, name: str, is_float: bool, dtype: object) -> None:
    """Refuse inputs or tokens that are no floats.

    Raises:
        SpecError: They are not; the message says what to do.
    """
    if not is_float:
        hint = "; scale and normalise them as the backbone's training did" if name == IMAGES else ""
        raise SpecError(f"{owner}: {name}: expected floats, got {dtype}{hint}.")


class ArrayFile:
    """What the two kinds of files with arrays have in common; a ``Source`` but for its ``batches``.

    Args:
        kind: ``"npz"`` or ``"safetensors"``.
        path: The file.
        plan: Which arrays are read.
        labels: The labels.
        groups: The groups, or None.
    """

    def __init__(self, kind: str, path: Path, plan: ArrayPlan, labels: Any, groups: Any) -> None:
        self.kind = kind
        self.path = path
        self.content = plan.content
        self.labels = labels
        self.groups = groups
        self.names: Sequence[str] | None = None
        self.facts: Mapping[str, Any] = {}
        self._plan = plan

    def __len__(self) -> int:
        return self._plan.count

    def digest(self) -> str:
        """The sha256 of the file."""
        return digest_of_files([self.path])


class SafetensorsFile(ArrayFile):
    """Tensors in a safetensors file; a ``Source``. Its labels are numbers.

    Args:
        path: The file.
        labels: The tensor with the labels; None for ``labels`` or ``label``.
        groups: The tensor with the groups, or None.

    Raises:
        SpecError: It is damaged, or its tensors are not what ``plan_arrays`` expects.
    """

    def __init__(self, path: Path, labels: str | None, groups: str | None) -> None:
        owner = owner_of(path)
        try:
            with safe_open(path, framework="pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                plan = plan_arrays(owner, shapes, labels, groups)
                for name in plan.parts:
                    row = file.get_slice(name)[:0]
                    check_floats(owner, name, row.is_floating_point(), row.dtype)
                columns = [None if name is None else file.get_tensor(name) for name in (plan.labels, plan.groups)]
        except (SafetensorError, OSError) as error:
            raise SpecError(f"{owner}: expected a safetensors file, got {one_line(error)}.") from error
        super().__init__("safetensors", path, plan, *columns)

    def batches(self, start: int, size: int) -> Iterator[dict[str, Tensor]]:
        """The tensors' rows from ``start`` on, in float32."""
        with safe_open(self.path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in self._plan.parts}
            for begin in range(start, self._plan.count, size):
                yield {name: one[begin : begin + size].float() for name, one in slices.items()}
