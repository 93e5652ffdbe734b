"""Wrappers that training puts around a module or its weights: removed from a copy, or named for the user to remove."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from regplug.errors import ExportError, one_line
from regplug.registry.references import reference_of
from regplug.torch_private import uncompiled

# classes that keep the wrapped module as ``module`` and return its output
WRAPPERS = {
    "torch.nn.parallel.distributed:DistributedDataParallel",
    "torch.nn.parallel.data_parallel:DataParallel",
    "torch.optim.swa_utils:AveragedModel",
}
# these keep shards of the weights; the attribute `module` of `FullyShardedDataParallel` does too
SHARDED = {
    "torch.distributed.fsdp.fully_sharded_data_parallel:FullyShardedDataParallel",
    "torch.distributed.fsdp:FSDPModule",
}
# hooks that compute a weight before every forward, and what removes them; these classes are not public in torch
WEIGHT_HOOKS = {
    "torch.nn.utils.weight_norm:WeightNorm": "torch.nn.utils.remove_weight_norm",
    "torch.nn.utils.spectral_norm:SpectralNorm": "torch.nn.utils.remove_spectral_norm",
    "torch.nn.utils.prune:BasePruningMethod": "torch.nn.utils.prune.remove",
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of ``torch.compile``, ``DistributedDataParallel``, ``DataParallel`` and ``AveragedModel``."""
    while True:
        inner = uncompiled(module)
        within = inner.module if WRAPPERS & _names(inner) else inner
        if within is module or not isinstance(within, nn.Module):
            return inner
        module = within


def check_whole(owner: str, module: nn.Module) -> None:
    """Refuse a module that does not have all its weights in this process.

    Raises:
        ExportError: It, or a module in it, is sharded over processes.
    """
    for name, child in module.named_modules():
        if SHARDED & _names(child):
            what = f"module {name!r}: " if name else ""
            raise ExportError(
                f"{owner}: {what}expected whole weights, got FSDP's shards; load a full state dict "
                "(torch.distributed.checkpoint.state_dict.get_model_state_dict) into spec.build()."
            )


def copy_of(owner: str, module: nn.Module) -> nn.Module:
    """A deep copy without the wrappers, of the module and of those inside it.

    Raises:
        ExportError: A tensor has no values, a weight is computed by a hook, or an attribute or a hook cannot be
            copied. The message names it.
    """
    copies: dict[int, Any] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise ExportError(f"{owner}: tensor {name!r}: expected one with values, got one on the meta device.")
    try:
        for child in reversed(list(module.modules())):
            if (inner := unwrapped(child)) is not child:
                copies[id(child)] = copy.deepcopy(inner, copies)  # references to the wrapper become references to this
        copied: nn.Module = copy.deepcopy(module, copies)
    except Exception as error:  # a class may define __deepcopy__, which may raise anything
        raise ExportError(f"{owner}: {_uncopied(module) or one_line(error)}") from error
    if text := _weights_hooked(copied):
        raise ExportError(f"{owner}: {text}")
    return copied


def weights_computed(module: nn.Module) -> str | None:
    """Which weights are computed from others, and how to stop that; None if there are none."""
    for name, child in module.named_modules():
        parametrized = getattr(child, "parametrizations", None)
        if isinstance(parametrized, nn.ModuleDict):
            tensor = next(iter(parametrized))
            return (
                f"module {name!r}: expected plain weights, got a parametrized {tensor!r}; use "
                f"torch.nn.utils.parametrize.remove_parametrizations(..., {tensor!r}) before export."
            )
    return _weights_hooked(module)


def _weights_hooked(module: nn.Module) -> str | None:
    for name, child in module.named_modules():
        for hook in child._forward_pre_hooks.values():
            for kind in WEIGHT_HOOKS.keys() & _names(hook):
                return (
                    f"module {name!r}: expected plain weights, got those of {type(hook).__name__}; use "
                    f"{WEIGHT_HOOKS[kind]} before export."
                )
    return None


def hooks_of(module: nn.Module) -> list[str]:
    """Each hook of the module and its submodules, with the module that it is on."""
    return [
        f"{getattr(hook, '__qualname__', type(hook).__name__)} on {name or type(module).__name__!r}"
        for name, child in module.named_modules()
        for kind in HOOKS
        for hook in getattr(child, kind).values()
    ]


def _uncopied(module: nn.Module) -> str | None:
    """The attribute or hook that cannot be copied: a lock, an open file, a generator."""
    if text := weights_computed(module):
        return text
    for name, child in module.named_modules():
        for attribute, value in vars(child).items():
            if attribute in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value)
            except Exception as error:
                what = "a hook" if attribute in HOOKS else f"attribute {f'{name}.{attribute}'.lstrip('.')!r}"
                kind = "" if attribute in HOOKS else f" {type(value).__name__}"
                return f"{what}: expected something that can be copied, got{kind}: {one_line(error)}"
    return None


def _names(value: object) -> set[str]:
    return {reference_of(base) for base in type(value).__mro__}
