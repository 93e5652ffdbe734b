"""Where the registers of a transformers model sit: ``[class tokens, registers, patches]`` in every family."""

from __future__ import annotations

from typing import Any

from torch import nn

import regplug
from regplug.entries import reference_of

from .families import FAMILIES, TIPSV2_CONFIG, Family


def layout_of(model: Any) -> regplug.TokenLayout:
    """The layout of a model, on the meta device too, of a model with a head, or of a configuration.

    Raises:
        SpecError: It carries no registers, or is a class whose output leaves them out.

    Example:
        >>> from transformers import RadioConfig
        >>> layout_of(RadioConfig()).positions(206)
        (3, 4, 5, 6, 7, 8, 9)
    """
    if isinstance(model, nn.Module):
        base, family = base_of(model)
        config = base.config
    else:
        config = model.vision_config if TIPSV2_CONFIG in _names(model) else model
        family = next(one for one in FAMILIES if one.config_class in _names(config))
    registers = getattr(config, family.registers)
    if registers == 0:
        raise regplug.SpecError(
            f"model {type(model).__name__}: carries no register tokens ({family.registers} is 0); use a checkpoint's "
            f"configuration that has some (its folder or hub id), or the option {family.registers}."
        )
    return regplug.TokenLayout(
        num_registers=registers,
        hidden_dim=config.hidden_size,
        start=1 if family.class_tokens is None else getattr(config, family.class_tokens),
        normalized=family.norm is not None,
    )


def base_of(model: nn.Module) -> tuple[Any, Family]:
    """The family's plain model, which gives tokens: ``model`` itself, or the one inside a model with a head.

    Raises:
        SpecError: The class drops its registers, or there is no plain model in it.
    """
    for one in (model, *model.children()):
        for family in FAMILIES:
            if family.model_class("Model") in _names(one):
                return one, family
    name, names = type(model).__name__, _names(model)
    for family in FAMILIES:
        if family.model_class("Backbone") in names:
            raise regplug.SpecError(
                f"model {name}: expected a model whose output holds the register tokens, got a Backbone class, "
                f"which drops them; use {family.prefix}Model."
            )
    wanted = [f"{family.prefix}Model" for family in FAMILIES if family.model_class("PreTrainedModel") in names]
    raise regplug.SpecError(
        f"model {name}: expected {' or '.join(wanted) or 'a model of a known family'}, or a model that holds one, "
        f"got {name}."
    )


def _names(thing: object) -> set[str]:
    return {reference_of(base) for base in type(thing).__mro__}
