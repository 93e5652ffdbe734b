"""Recognises calls of layers: which tensor a weight projects, and which width the weight takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regplug.commands.audit.tensor_trees import of_width

CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
MATRIX_PRODUCTS = {"matmul", "__matmul__", "mm", "bmm"}
NORMS = {"layer_norm", "rms_norm"}


@dataclass(frozen=True)
class Projection:
    """One call of a layer.

    Args:
        argument: Position or name of the argument that is projected.
        tensor: The tensor that is projected.
        weight: The weight that projects it; None for a norm without one.
        axis: The tensor's axis of the width.
        wanted: The width that the weight takes.
        weight_axis: The weight's axis of that width.
        makes_features: False for a norm, which only rescales its input.
    """

    argument: int | str
    tensor: Tensor
    weight: Tensor | None
    axis: int
    wanted: int
    weight_axis: int
    makes_features: bool = True

    @property
    def given(self) -> int:
        """The width of the tensor."""
        return int(self.tensor.shape[self.axis])

    def repaired(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call, with the tensor changed to the width that the weight takes."""
        fitting = of_width(self.tensor, self.axis, self.wanted)
        if isinstance(self.argument, str):
            return args, {**kwargs, self.argument: fitting}
        return tuple(fitting if index == self.argument else one for index, one in enumerate(args)), dict(kwargs)


def find_projection(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_live: Callable[[Tensor], bool]
) -> Projection | None:
    """The projection that a torch function computes; None if it is none.

    Args:
        name: The function's name.
        args: Its arguments.
        kwargs: Its keyword arguments.
        is_live: Whether a tensor was computed from the network's inputs; a weight was not.
    """

    def given(position: int, word: str) -> Any:
        return args[position] if len(args) > position else kwargs.get(word)

    def is_pair(tensor: object, weight: object) -> bool:
        both = isinstance(tensor, Tensor) and isinstance(weight, Tensor) and tensor.dim() > 0 and weight.dim() > 1
        return both and is_live(tensor) and not is_live(weight)  # type: ignore[arg-type]

    if name == "linear" or name in CONVOLUTIONS:
        tensor, weight = given(0, "input"), given(1, "weight")
        if not is_pair(tensor, weight):
            return None
        axis, wanted = -1, int(weight.shape[1])
        if name in CONVOLUTIONS:
            axis, wanted = 1 - weight.dim(), wanted * int(given(6, "groups") or 1)
        if tensor.dim() < -axis:
            return None
        return Projection(0 if args else "input", tensor, weight, axis, wanted, 1)
    if name in MATRIX_PRODUCTS and len(args) == 2 and is_pair(*args):
        return Projection(0, args[0], args[1], -1, int(args[1].shape[-2]), -2)
    if name == "addmm" and len(args) == 3 and is_pair(*args[1:]):
        return Projection(1, args[1], args[2], -1, int(args[2].shape[-2]), -2)
    if name == "einsum" and len(args) == 3 and is_pair(*args[1:]):
        return _einsum(str(args[0]), args[1], args[2], 1, 2)
    if name == "einsum" and len(args) == 3 and is_pair(args[2], args[1]):
        return _einsum(str(args[0]), args[2], args[1], 2, 1)
    if name == "tensordot" and len(args) >= 2 and is_pair(*args[:2]) and given(2, "dims") == 1:
        return Projection(0, args[0], args[1], -1, int(args[1].shape[0]), 0)
    if name in NORMS:
        tensor, shape = given(0, "input"), given(1, "normalized_shape")
        if (
            isinstance(tensor, Tensor)
            and tensor.dim() > 0
            and is_live(tensor)
            and shape is not None
            and len(shape) == 1
        ):
            return Projection(0 if args else "input", tensor, given(2, "weight"), -1, int(shape[0]), 0, False)
    return None


def _einsum(equation: str, tensor: Tensor, weight: Tensor, argument: int, of_weight: int) -> Projection | None:
    """The projection of ``bc,oc->bo``: the one letter that both operands have and the result lacks is the width."""
    words, arrow, result = equation.replace(" ", "").partition("->")
    both = words.split(",")
    if not arrow or len(both) != 2 or "." in equation:
        return None
    mine, its = both[argument - 1], both[of_weight - 1]
    summed = [letter for letter in mine if letter in its and letter not in result]
    if len(summed) != 1 or (len(mine), len(its)) != (tensor.dim(), weight.dim()):
        return None
    axis, weight_axis = mine.index(summed[0]) - len(mine), its.index(summed[0])
    return Projection(argument, tensor, weight, axis, int(weight.shape[weight_axis]), weight_axis)
