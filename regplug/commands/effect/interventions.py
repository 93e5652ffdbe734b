"""What is done to conditioning vectors and to single calls, to see what changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regplug.commands.audit.dataflow import MODULATES
from regplug.commands.audit.tensor_trees import map_tensors, tensors_in

NORMS = {"layer_norm", "rms_norm", "instance_norm", "group_norm", "batch_norm", "normalize"}


def swapped(batch: int, tensor: Tensor) -> Tensor:
    """Each sample gets the row of another sample, half a batch away: neighbours may be alike.

    If there are several rows for a sample, it is the next row: their order is not known.
    """
    return tensor.roll(batch // 2 if tensor.shape[0] == batch else 1, 0) if tensor.dim() else tensor


def averaged(tensor: Tensor) -> Tensor:
    """Each sample gets the mean row; integers have none."""
    if not tensor.is_floating_point() or not tensor.dim():
        return tensor
    return tensor.mean(dim=0, keepdim=True).expand_as(tensor).clone()


def zeroed(tensor: Tensor) -> Tensor:
    """Each sample gets zeros; integers have no zero that means nothing."""
    return torch.zeros_like(tensor) if tensor.is_floating_point() else tensor


def interventions(batch: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is done to the conditioning of this many samples, by name."""
    return {"swap": partial(swapped, batch), "mean": averaged, "zero": zeroed}


def of_arguments(indices: Sequence[int], change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """Changes those of a module's argument tensors that are the conditioning."""

    def changed(given: Any) -> Any:
        tensors = list(tensors_in(given))
        new = {id(tensors[index]): change(tensors[index]) for index in indices if index < len(tensors)}
        return map_tensors(lambda one: new.get(id(one), one), given)

    return changed


def of_output(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """Changes all tensors of a module's output."""
    return lambda output: map_tensors(change, output)


@dataclass
class Norms:
    """The inputs and outputs of every norm of a forward, in order."""

    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, given: object, result: object) -> None:
        """Add one call."""
        first = next((one for one in tensors_in(given) if one.is_floating_point()), None)
        made = next((one for one in tensors_in(result) if one.is_floating_point()), None)
        if first is not None and made is not None:
            self.calls.append((first.detach().clone(), made.detach().clone()))


class Replaced(TorchFunctionMode):
    """Changes one tensor of each of some calls that scale or shift; records the last such call and all norms.

    Args:
        module: The network; norms of classes outside torch are watched as modules.
        places: The calls by their number, as ``Flow`` counts them, each with which of its tensors to change.
        change: What is done to it.
    """

    def __init__(
        self,
        module: nn.Module,
        places: Mapping[int, int],
        change: Callable[[Tensor], Tensor] = lambda one: one,
    ) -> None:
        super().__init__()
        self.module, self.places, self.change = module, places, change
        self.calls = 0
        self.is_paused = False  # while it is, calls are not the network's
        self.result: Tensor | None = None
        self.norms = Norms()
        self._hooks = ExitStack()

    def __enter__(self) -> Any:
        for part in self.module.modules():
            is_norm = "norm" in type(part).__name__.lower() and not any(True for _ in part.children())
            if is_norm and not type(part).__module__.startswith("torch.nn"):
                handle = part.register_forward_hook(lambda _, given, result: self.norms.add(given, result))
                self._hooks.callback(handle.remove)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self.is_paused:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        is_it = False
        if name in MODULATES:
            self.calls += 1
            is_it = self.calls in self.places
        if is_it:
            args, kwargs = of_arguments([self.places[self.calls]], self.change)((args, kwargs))
        result = func(*args, **kwargs)
        if is_it:
            made = next(tensors_in(result), None)
            self.result = None if made is None else made.detach().clone()
        if name in NORMS:
            self.norms.add(args, result)
        return result
