"""Reads a backbone's register tokens for given inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from regplug.errors import PluginError, SpecError
from regplug.nn.backbone import ask_layout, ask_tokens, inside, recognise
from regplug.nn.select import SelectRegisters
from regplug.registry.entries import BackboneEntry
from regplug.registry.layout import TokenLayout
from regplug.registry.registry import Registry


def read_registers(
    model: nn.Module,
    inputs: Any,
    *,
    normalized: bool | None = None,
    backbone: str | None = None,
    registry: Registry | None = None,
) -> Tensor:
    """The register tokens of ``model`` for ``inputs``, ``[B, R, D]``, contiguous.

    Runs the model in its current mode (calling ``eval()`` is up to the caller). Autograd, inference mode and autocast
    around the call apply. Several threads may read from one model.

    Args:
        model: A model that an installed plugin knows.
        inputs: The model's inputs: images ``[B, C, H, W]``, or a mapping if its forward takes one.
        normalized: Whether the model's final norm is applied to the registers; None does as the model's own features,
            see ``layout_of(model).normalized``.
        backbone: The backbone that the model is of, if several plugins know its class.
        registry: Where backbones are looked up; the installed plugins when None.

    Raises:
        NameLookupError: No plugin knows the model, or several do.
        SpecError: The model has no registers, or they cannot be read in this way.
        ShapeError: The token sequence does not match the layout.
    """
    entry = recognise(model, backbone, registry)
    tokens, layout = tokens_of(entry, inside(model), normalized)
    found = tokens(inputs)
    if not isinstance(found, Tensor):
        raise PluginError(f"backbone {entry.name!r}: tokens: expected a tensor, got {type(found).__name__}.")
    registers: Tensor = SelectRegisters(layout)(found)
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
