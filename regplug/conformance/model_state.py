"""What a network consists of, so that a check can say what changed in it."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


@dataclass(frozen=True)
class ModelState:
    """A network's parts by name. It keeps the objects themselves, because a freed object's address is used again.

    Args:
        modules: Its modules.
        modes: Whether each module is in train mode.
        settings: Other public attributes of its modules.
        weights: The address and the sum of each tensor in its state dict.
        hooks: How many hooks each module has.
    """

    modules: Mapping[str, nn.Module]
    modes: Mapping[str, bool]
    settings: Mapping[str, Any]
    weights: Mapping[str, tuple[int, float]]
    hooks: Mapping[str, int]

    def changes(self, later: ModelState, field: str) -> list[str]:
        """The names in one field that are not the same in a later state."""
        old, new = getattr(self, field), getattr(later, field)
        same = operator.is_ if field in ("modules", "settings") else operator.eq
        return sorted(name or "itself" for name in {*old, *new} if not same(old.get(name), new.get(name)))


def model_state(network: nn.Module) -> ModelState:
    """The state of a network now."""
    modules = dict(network.named_modules())
    attributes = {f"{name}.{word}": value for name, module in modules.items() for word, value in vars(module).items()}
    settings = {name: value for name, value in attributes.items() if not name.rpartition(".")[2].startswith("_")}
    weights = {
        name: (tensor.data_ptr(), float(tensor.double().sum()) if tensor.is_floating_point() else 0.0)
        for name, tensor in network.state_dict().items()
    }
    hooks = {name: sum(len(getattr(module, kind)) for kind in HOOKS) for name, module in modules.items()}
    modes = {name: module.training for name, module in modules.items()}
    return ModelState(modules, modes, settings, weights, hooks)
