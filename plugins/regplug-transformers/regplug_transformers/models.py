"""transformers' models by type, folder or hub id, and the type and options of an existing model."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import regplug
from regplug.nn import closest, one_line

from .families import FAMILIES, Family
from .layouts import base_of, reference_of

TYPES = {family.model_type: family for family in FAMILIES}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

MAX_LAYERS = 1024  # configurations make a list of this length before the first layer

# options for Backbone classes and heads, which plain models ignore
FOREIGN = (
    "out_features",
    "out_indices",
    "stage_names",
    "apply_layernorm",
    "reshape_hidden_states",
    "normalize_backbone_outputs",
    "head_config",
    "flip_pairs",
    "semantic_loss_ignore_index",
)


def build(name: str = "dinov2_with_registers", **options: Any) -> nn.Module:
    """A family's plain model with random weights, in float32; only a hub's configuration is downloaded.

    Args:
        name: A model type (``"radio"``, with its default configuration), a folder with ``config.json``, or an id on the
            hub. TIPSv2 gives its vision tower.
        **options: Values of the configuration, in place of its own.

    Raises:
        NameLookupError: No type, folder or hub id has this name.
        SpecError: transformers is not installed, the configuration is of another family, or it takes no such options.
    """
    transformers = _transformers()
    family, values = _stored_config(transformers, name)
    config_class: Any = _class(name, family.config_class)
    known = _own_options(transformers, config_class)
    for option, value in options.items():
        if option not in known:
            raise regplug.SpecError(
                f"model {name!r}: option {option!r}: expected a known option, got {value!r}{closest(option, known)}."
            )
        if option.endswith("layers") and isinstance(value, int) and value > MAX_LAYERS:
            raise regplug.SpecError(
                f"model {name!r}: option {option!r}: expected at most {MAX_LAYERS} layers, got {value}."
            )
    model_class = _class(name, family.model_class("Model"))
    try:
        model: nn.Module = model_class(config_class.from_dict({**values, **options}))
    except Exception as error:  # a configuration's checks and a layer's constructor raise anything
        raise regplug.SpecError(
            f"model {name!r}: expected a configuration that {family.prefix}Model can be built of, "
            f"got {options or values}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    return model


def describe(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """The model type, and where its configuration differs from the default: ``build`` makes the same model from them.

    For a model with a head, and for all of TIPSv2, this is the plain model inside, which returns the tokens.

    Raises:
        SpecError: The model is of a subclass, or was changed after it was built from its configuration.
    """
    base, family = base_of(model)
    name = type(base).__name__
    if reference_of(type(base)) != family.model_class("Model"):
        raise regplug.SpecError(f"model {name}: expected {family.prefix}Model itself, got a class derived from it.")
    stored, default = base.config.to_dict(), type(base.config)().to_dict()
    known = _own_options(_transformers(), type(base.config))
    options = {word: stored[word] for word in known if stored[word] != default[word]}
    with torch.device("meta"):
        same = build(family.model_type, **options)
    differing = _shapes(base).items() ^ _shapes(same).items()
    if differing:
        raise regplug.SpecError(
            f"model {name}: expected what its configuration builds, got another model: {min(differing)[0]} differs."
        )
    return family.model_type, options


def _stored_config(transformers: ModuleType, name: str) -> tuple[Family, dict[str, Any]]:
    """The family and the stored configuration for a name; a model type has no stored one."""
    if name in TYPES:
        return TYPES[name], {}
    if name == "tipsv2":
        return TYPES["tipsv2_vision_model"], {}
    # "./NAME", never "NAME": a bundle's model is a name without a slash, and must not open a file
    is_folder = "/" in name and Path(name).is_dir()
    if is_folder and not (Path(name) / "config.json").is_file():
        raise regplug.NameLookupError(f"model {name!r}: expected a folder with config.json, got none in it.")
    if not (is_folder or HUB_ID.fullmatch(name)):
        if name in transformers.CONFIG_MAPPING:
            raise _without_registers(name, name)
        raise regplug.NameLookupError(
            f"model {name!r}: expected a model type, a folder with config.json or a hub id{closest(name, list(TYPES))}."
        )
    try:
        stored = dict(transformers.PreTrainedConfig.get_config_dict(name, local_files_only=is_folder)[0])
    except Exception as error:  # missing, no network, not JSON, JSON of something else: each raises a different class
        raise regplug.NameLookupError(
            f"model {name!r}: expected a configuration there, got {type(error).__name__}: {one_line(error)}"
        ) from error
    model_type = stored.get("model_type")
    if model_type == "tipsv2":
        model_type, stored = "tipsv2_vision_model", stored.get("vision_config") or {}
    if model_type not in TYPES:
        raise _without_registers(name, model_type)
    return TYPES[model_type], {word: value for word, value in stored.items() if word not in FOREIGN}


def _without_registers(name: str, model_type: object) -> regplug.SpecError:
    return regplug.SpecError(
        f"model {name!r}: carries no register tokens that this plugin knows of (model_type {model_type!r}); "
        f"known: {', '.join(TYPES)}."
    )


def _class(name: str, reference: str) -> Any:
    """A class of the installed transformers, which may be older than the family."""
    try:
        return pkgutil.resolve_name(reference)
    except (ImportError, AttributeError) as error:
        raise regplug.SpecError(
            f"model {name!r}: expected a transformers that has {reference}, got {one_line(error)}; use a newer one."
        ) from error


def _own_options(transformers: ModuleType, config_class: Any) -> list[str]:
    """The options of a family's configuration that not all have; a configuration silently takes any other name."""
    common = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    own = [field.name for field in dataclasses.fields(config_class)]
    return [word for word in own if word not in common and word not in FOREIGN and not word.startswith("_")]


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Every parameter and buffer, also non-persistent ones, because rotary tables depend on sizes."""
    return {name: tuple(one.shape) for name, one in (*model.named_parameters(), *model.named_buffers())}


def _transformers() -> ModuleType:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise regplug.SpecError(
            f"backbone 'transformers': expected the package transformers, got none ({error}); "
            f"use pip install 'regplug-transformers[transformers]'."
        ) from error
