"""The parts of conditioning vectors that a forward joins by ``torch.cat``: where each comes from, and its width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from regplug.commands.audit.origins import Origin, Part
from regplug.commands.audit.tensor_trees import is_vector

CATS = {"cat", "concat", "concatenate", "hstack"}


class JoinedParts:
    """Records the parts of vectors ``[B, n]`` that were concatenated along their width.

    Args:
        origin: What a tensor was computed from.
    """

    def __init__(self, origin: Callable[[Tensor], Origin | None]) -> None:
        self._origin = origin
        self._parts: dict[int, tuple[Tensor, tuple[Part, ...]]] = {}  # holds the tensors, so that no id is used again

    def of(self, tensor: Tensor) -> tuple[Part, ...]:
        """The parts of a vector; none if it was not joined."""
        found = self._parts.get(id(tensor))
        return () if found is None else found[1]

    def all(self) -> list[tuple[Part, ...]]:
        """The parts of every joined vector, in the order in which they were joined."""
        return [parts for _, parts in self._parts.values()]

    def record(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], live: Sequence[Tensor], result: object
    ) -> None:
        """Record a call of a torch function that took these arguments.

        Args:
            name: The function's name.
            args: Its arguments.
            kwargs: Its keywords.
            live: Those of its operands that come from readouts or inputs.
            result: What it returned.
        """
        if not (isinstance(result, Tensor) and is_vector(result) and result.dim() == 2):
            return
        parts: tuple[Part, ...] = ()
        if name in CATS:
            tensors = args[0] if args else kwargs.get("tensors", ())
            parts = self._joined([one for one in tensors if isinstance(one, Tensor)], result)
        elif len(live) == 1 and live[0].shape == result.shape:  # a copy, an activation, a norm
            parts = self.of(live[0])
        if parts:
            self._parts[id(result)] = result, parts

    def _joined(self, tensors: Sequence[Tensor], result: Tensor) -> tuple[Part, ...]:
        if any(one.dim() != 2 for one in tensors) or sum(int(one.shape[1]) for one in tensors) != result.shape[1]:
            return ()  # along the batch
        return tuple(part for one in tensors for part in self.of(one) or (self._alone(one),))

    def _alone(self, tensor: Tensor) -> Part:
        origin = self._origin(tensor) or Origin()
        names = sorted(origin.readouts | {f"input {name}" for name in origin.inputs})
        return Part(" and ".join(names) or "numbers of its own", int(tensor.shape[1]))


def describe_parts(parts: Sequence[Part], own: Sequence[Part]) -> str:
    """``joins 240 by read (192 at the own sizes) + 7 by input state``; empty if there are no parts.

    Args:
        parts: The parts at the sizes in question.
        own: The same parts at the network's own sizes; a part whose width differs is the one that changed.
    """
    texts = []
    for index, part in enumerate(parts):
        before = own[index].width if len(own) == len(parts) else part.width
        changed = f" ({before} at the network's own sizes)" if before != part.width else ""
        texts.append(f"{part.width} by {part.name}{changed}")
    return f"joins {' + '.join(texts)}" if texts else ""
