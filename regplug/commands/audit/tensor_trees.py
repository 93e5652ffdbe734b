"""Tensors in nested arguments, and their shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors in lists, tuples and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_in(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one)


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with each tensor in its lists, tuples and dicts changed; everything else stays."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) is dict:
        return {key: map_tensors(change, one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map_tensors(change, one) for one in value)
    return value


def on_one_device(value: Any) -> Any:
    """The value, with tensors on the CPU moved to the meta device if others are there."""
    devices = {one.device.type for one in tensors_in(value)}
    if len(devices) < 2 or "meta" not in devices:
        return value
    return map_tensors(lambda one: one.to("meta"), value)


def is_vector(tensor: Tensor) -> bool:
    """Whether it is one vector per sample: at most one size after the first is above 1."""
    return sum(size > 1 for size in tensor.shape[1:]) <= 1


def width_axis(tensor: Tensor) -> int:
    """The axis of a conditioning tensor's width n: in ``[B, n]``, ``[B, 1, n]``, ``[B, n, 1]``; else the last axis."""
    wide = [axis for axis in range(1, tensor.dim()) if tensor.shape[axis] > 1]
    return wide[0] if len(wide) == 1 else tensor.dim() - 1


def of_width(tensor: Tensor, axis: int, width: int) -> Tensor:
    """An empty tensor of the same shape except for one size."""
    shape = list(tensor.shape)
    shape[axis] = width
    return tensor.new_empty(shape)
