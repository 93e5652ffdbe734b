"""Parameter groups for optimizers, without tags on parameters, which copies lose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from regplug.errors import SpecError
from regplug.registry.integers import is_int


def param_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, one per weight decay, ascending; each trainable parameter is in one, once.

    nvSubquadratic tags parameters (``_no_weight_decay``, ``_weight_decay``), and so do its readouts and its FiLM
    generator here; ``deepcopy``, EMA copies, ``to_empty`` and FSDP2 lose the tags. This function needs none. The decay
    of a parameter is the first of these:

    1. ``no_weight_decay`` of the nearest module around it that has one, as a ``KernelFiLMGenerator`` does: a float is
       the decay of its weights, any other true number means 0 for them; its biases get 0;
    2. its tag, if it still has one;
    3. 0 for a vector or scalar: biases, norms, logits, gates;
    4. ``weight_decay``.

    A tied parameter counts where it comes first. Wrappers make no difference: DDP, ``torch.compile``, EMA copies,
    ``fully_shard``, scripted modules. As with any optimizer under ``fully_shard``, call it before the first forward:
    after that, a root module's parameters are the gathered ones, which get no gradients.

    Args:
        module: The module to train.
        weight_decay: The decay of all other parameters, >= 0.

    Returns:
        Dictionaries with ``params`` and ``weight_decay``; none for a module without trainable parameters.

    Raises:
        SpecError: A weight decay is negative or not finite, or FSDP1 has flattened the parameters, so that weights
            and biases look alike.

    Example:
        >>> from regplug.nn.film import KernelFiLMGenerator
        >>> film = KernelFiLMGenerator(384, kernel_hidden_dim=32, num_film_layers=3, no_weight_decay=1e-3)
        >>> [(group["weight_decay"], len(group["params"])) for group in param_groups(film, weight_decay=0.05)]
        [(0.0, 2), (0.001, 2)]
    """
    if not isinstance(module, nn.Module):
        raise SpecError(f"param_groups: module: expected an nn.Module, got {module!r}.")
    _check("param_groups: weight_decay", weight_decay)
    groups: dict[float, list[nn.Parameter]] = {}
    seen = set()
    for owner, parameter, declared in _parameters(module):
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            decay = _decay(parameter, declared, weight_decay)
            _check(owner, decay)
            groups.setdefault(float(decay), []).append(parameter)
    return [{"params": groups[decay], "weight_decay": decay} for decay in sorted(groups)]


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, float | None]]:
    """Each parameter with its name, and the ``no_weight_decay`` of the modules around it."""
    declared: dict[str, float | None] = {}
    for path, child in module.named_modules():
        if type(child).__name__ == "FullyShardedDataParallel":
            raise SpecError("param_groups: expected weights in their shapes, got FSDP1's flat ones; use fully_shard.")
        own = getattr(child, "no_weight_decay", None)
        # timm's models have a method of this name; False and the integer 0 declare nothing, the float 0.0 does
        is_declared = isinstance(own, float) or (isinstance(own, int) and bool(own))
        declared[path] = own if is_declared else declared.get(path.rpartition(".")[0])
        for name, parameter in child.named_parameters(recurse=False):
            yield "param_groups: parameter " + f"{path}.{name}".removeprefix("."), parameter, declared[path]


def _decay(parameter: nn.Parameter, declared: float | None, given: float) -> float:
    vector = len(parameter.shape) <= 1
    if declared is not None:
        return declared if isinstance(declared, float) and not vector else 0.0
    if getattr(parameter, "_no_weight_decay", False):
        return 0.0
    tag: float | None = getattr(parameter, "_weight_decay", None)
    if tag is not None:
        return tag
    return 0.0 if vector else given


def _check(owner: str, decay: float) -> None:
    if not ((is_int(decay) or isinstance(decay, float)) and 0 <= decay < math.inf):
        raise SpecError(f"{owner}: expected a finite weight decay of at least 0, got {decay!r}.")
