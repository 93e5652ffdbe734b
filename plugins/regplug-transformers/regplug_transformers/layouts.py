"""Where the registers of a transformers model sit: ``[class tokens, registers, patches]`` in every family."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from torch import nn

import regplug

from .families import FAMILIES, TIPSV2_CONFIG, Family


def layout_of(model: Any) -> regplug.TokenLayout:
    """The layout of a model, on the meta device too, of a model with a head, or of a configuration.

    A model's registers are counted where it keeps them: they may differ from its configuration.

    Raises:
        SpecError: It has no registers, its class drops them or may drop them, or it is neither a model nor a
            configuration of these families.

    Example:
        >>> from transformers import RadioConfig
        >>> layout_of(RadioConfig()).positions(206)
        (3, 4, 5, 6, 7, 8, 9)
    """
    if isinstance(model, nn.Module):
        base, family = base_of(model)
        config = base.config
        registers, width = _sizes_in(base, family)
    else:
        config, family = _configuration(model)
        registers, width = getattr(config, family.registers), config.hidden_size
    if registers == 0:
        raise regplug.SpecError(
            f"model {type(model).__name__}: carries no register tokens ({family.registers} is 0); use a checkpoint's "
            f"configuration that has some (its folder or hub id), or the option {family.registers}."
        )
    class_tokens = 1 if family.class_tokens is None else getattr(config, family.class_tokens)
    return regplug.TokenLayout(
        num_registers=registers,
        hidden_dim=width,
        start=class_tokens,
        normalized=family.norm is not None,
        groups=(regplug.TokenGroup("cls", 0, class_tokens), regplug.TokenGroup("patches", class_tokens + registers)),
    )


def base_of(model: nn.Module) -> tuple[Any, Family]:
    """The family's plain model, which returns tokens: ``model`` itself, or the one inside a model with a head.

    Raises:
        SpecError: The class drops its registers, or has its own forward that may do so; there is no plain model in it;
            or it is a configuration.
    """
    name, names = type(model).__name__, _names(model)
    if not isinstance(model, nn.Module):
        _, family = _configuration(model)
        raise regplug.SpecError(
            f"model {name}: expected a model, got its configuration; use {family.prefix}Model, built of it."
        )
    for one in (model, *model.children()):
        for family in FAMILIES:
            plain = [base for base in type(one).__mro__ if reference_of(base) == family.model_class("Model")]
            if plain:
                _check_forward(type(one), plain[0])
                return one, family
    for family in FAMILIES:
        if family.model_class("Backbone") in names:
            raise regplug.SpecError(
                f"model {name}: expected a model that returns the register tokens, got a Backbone class, "
                f"which drops them; use {family.prefix}Model."
            )
    wanted = [f"{family.prefix}Model" for family in FAMILIES if family.model_class("PreTrainedModel") in names]
    raise regplug.SpecError(
        f"model {name}: expected {' or '.join(wanted) or 'a model of a known family'}, or a model that holds one, "
        f"got {name}."
    )


def _check_forward(cls: type[nn.Module], plain: type[nn.Module]) -> None:
    """Refuse a subclass with its own forward: its tokens may be in another order, or without registers."""
    if cls.forward is not plain.forward:
        raise regplug.SpecError(
            f"model {cls.__name__}: expected the forward of {plain.__name__}, got its own, whose tokens may be in "
            f"another order; if they are not, use SelectRegisters(layout_of(model.config)) on them."
        )


def _sizes_in(model: Any, family: Family) -> tuple[int, int]:
    """``(R, D)`` of the registers that a model keeps."""
    config = model.config
    try:
        shape = attrgetter(family.parameter)(model).shape
    except AttributeError as error:
        raise regplug.SpecError(
            f"model {type(model).__name__}: expected its register tokens at {family.parameter}, got none there."
        ) from error
    if len(shape) < 2:  # a sharded model keeps a flat part of each parameter, without its shape
        return getattr(config, family.registers), config.hidden_size
    class_tokens = 0 if family.class_tokens is None else getattr(config, family.class_tokens)
    return shape[-2] - class_tokens, shape[-1]


def _configuration(given: Any) -> tuple[Any, Family]:
    """A configuration and its family; for all of TIPSv2, that of its vision tower."""
    config = given.vision_config if TIPSV2_CONFIG in _names(given) else given
    for family in FAMILIES:
        if family.config_class in _names(config):
            return config, family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise regplug.SpecError(
        f"backbone 'transformers': expected a model or a configuration of {known}, got {type(given).__name__}."
    )


def reference_of(cls: type) -> str:
    """A class as families name it, ``"module:Class"``."""
    return f"{cls.__module__}:{cls.__qualname__}"


def _names(thing: object) -> set[str]:
    return {reference_of(base) for base in type(thing).__mro__}
