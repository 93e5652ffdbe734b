"""Reads a backbone's register tokens, or another group of its tokens, for given inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from regplug.errors import PluginError, SpecError
from regplug.nn.backbone import ask_layout, ask_tokens, inside, recognise
from regplug.nn.select import SelectRegisters
from regplug.registry.entries import BackboneEntry
from regplug.registry.integers import is_positive_int
from regplug.registry.layout import REGISTERS, TOKENS, TokenLayout
from regplug.registry.registry import Registry


def read_registers(
    model: nn.Module,
    inputs: Any,
    *,
    group: str = REGISTERS,
    normalized: bool | None = None,
    backbone: str | None = None,
    registry: Registry | None = None,
) -> Tensor:
    """The register tokens of ``model`` for ``inputs``, or those of another group, ``[B, R, D]``, contiguous.

    Runs the model in its current mode (calling ``eval()`` is up to the caller). Autograd, inference mode and autocast
    around the call apply. Several threads may read from one model.

    Args:
        model: A model that an installed plugin knows.
        inputs: The model's inputs: images ``[B, C, H, W]``, or a mapping if its forward takes one.
        group: Another group of ``layout_of(model).groups``, as ``"patches"``.
        normalized: Whether the model's final norm is applied to the registers; None does as the model's own features,
            see ``layout_of(model).normalized``.
        backbone: The backbone that the model is of, if several plugins know its class.
        registry: Where backbones are looked up; the installed plugins when None.

    Raises:
        NameLookupError: No plugin knows the model, or several do.
        SpecError: The model has no registers or no such group, or they cannot be read in this way.
        ShapeError: The token sequence does not match the layout.
    """
    entry = recognise(model, backbone, registry)
    tokens, layout = tokens_of(entry, inside(model), normalized)
    found = tokens(inputs)
    if not isinstance(found, Tensor):
        raise PluginError(f"backbone {entry.name!r}: tokens: expected a tensor, got {type(found).__name__}.")
    place = layout if group == REGISTERS else layout.for_group(group, found.shape[1])
    registers: Tensor = SelectRegisters(place)(found)
    return registers


def tokens_of(entry: BackboneEntry, model: nn.Module, normalized: bool | None) -> tuple[nn.Module, TokenLayout]:
    """The module from the model's inputs to its tokens, and the layout of that module's output.

    Raises:
        SpecError: The model has no registers, or its tokens cannot be read in this way.
    """
    if entry.tokens is not None and not isinstance(model, nn.Module):
        raise SpecError(f"model: expected an nn.Module, got {type(model).__name__}.")
    if not (normalized is None or isinstance(normalized, bool)):
        raise SpecError(f"normalized: expected True, False or None, got {normalized!r}.")
    layout = ask_layout(entry, model)
    wanted = bool(layout.normalized) if normalized is None else normalized
    return ask_tokens(entry, model, wanted), replace(layout, normalized=wanted)


def layout_for_group(tokens: nn.Module, layout: TokenLayout, group: str) -> TokenLayout:
    """The layout by which a readout reads a group of a tokens module's output.

    If the group's length depends on T, T is that of the one size of inputs that the module takes: it runs once, on
    zeros, in eval mode. If it takes several sizes, the layout has any number of tokens.

    Raises:
        SpecError: There is no such group, or its length depends on the inputs, which have several sizes, and other
            tokens come after it.
    """
    is_free = group == TOKENS or any(one.name == group and one.num_tokens is None for one in layout.groups)
    if not is_free or layout.num_tokens is not None:
        return layout.for_group(group)
    shape = getattr(tokens, "input_shape", None)
    if shape is None:
        found = next((one for one in layout.groups if one.name == group), None)
        if found is None or found.stop is None:
            return layout.for_group(group)
        raise SpecError(
            f"group {group!r}: expected a backbone that states the one size of its images as input_shape (C, H, W), "
            f"because other tokens come after the group, got a {type(tokens).__name__} that states none."
        )
    first = next(tokens.parameters(), torch.empty(0))
    modes = {part: part.training for part in tokens.modules()}
    try:
        with torch.no_grad():
            found = tokens.eval()(torch.zeros(1, *shape, dtype=first.dtype, device=first.device))
    finally:
        for part, mode in modes.items():
            part.training = mode
    return layout.for_group(group, found.shape[1])


def input_shape(tokens: nn.Module) -> tuple[int, ...]:
    """The backbone's input without the batch, ``(C, H, W)``, as its tokens module states it.

    Raises:
        SpecError: It takes inputs of several sizes, or not exactly one tensor.
    """
    sizes = getattr(tokens, "input_shape", None)
    if not (isinstance(sizes, (tuple, list)) and sizes and all(map(is_positive_int, sizes))):
        raise SpecError(
            f"{type(tokens).__name__}: expected a backbone that states the one size of its images as input_shape "
            f"(C, H, W), got {sizes!r}; use the readout without its backbone."
        )
    return tuple(sizes)
