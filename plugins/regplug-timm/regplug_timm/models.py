"""timm's models by name, and the name and options of an existing model."""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import Any

import torch
from torch import nn

import regplug
from regplug.nn import closest, one_line

from .layouts import FAMILIES, name_of
from .reading import AFTER

# with these, create_model reads files or the network, or builds on another device; a bundle, which may be untrusted,
# must not cause that
READING = re.compile(r"pretrained.*|checkpoint_path|cache_dir|device")

# a DeiT with registers is a VisionTransformer
OWN_MODULES = {reference.partition(":")[0] for reference in FAMILIES} | {"timm.models.deit"}
MAX_DEPTH = 1024  # blocks; timm makes a list of this length before the first block

IN_TRAINING = re.compile(r"training|drop|^p$|checkpointing|fused_attn|grad|device|dtype")


def build(name: str | None = None, /, **options: Any) -> nn.Module:
    """``timm.create_model(name, **options)`` with random weights, for timm's own names; nothing is downloaded.

    Raises:
        NameLookupError: timm knows no such model.
        SpecError: timm is not installed, no name is given, or the model does not take the options.
    """
    timm = _timm()
    if name is None:
        raise regplug.SpecError("backbone 'timm': expected a model, as timm:vit_small_patch14_reg4_dinov2, got none.")
    if not timm.is_model(name.partition(".")[0]):
        raise regplug.NameLookupError(f"model {name!r}: not known to timm{closest(name, timm.list_models())}.")
    module = timm.models.model_entrypoint(name.partition(".")[0]).__module__
    if module.startswith("timm.") and module not in OWN_MODULES:
        # before it is built: a bundle may name any model, and some loop over their options without limit
        raise regplug.SpecError(
            f"model {name!r}: carries no register tokens (it is of {module}); use one with reg, dinov3 or radio "
            "in its name."
        )
    clashes = sorted(filter(READING.fullmatch, options))
    if clashes:
        raise regplug.SpecError(
            f"model {name!r}: {clashes[0]}: expected no such option, as the caller loads the weights; leave it out."
        )
    depth = options.get("depth")
    if isinstance(depth, int) and depth > MAX_DEPTH:
        raise regplug.SpecError(f"model {name!r}: depth: expected at most {MAX_DEPTH} blocks, got {depth}.")
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
    except Exception as error:  # timm's constructors raise anything: TypeError, AssertionError, KeyError, ...
        raise regplug.SpecError(
            f"model {name!r}: expected options that it takes, got {options}: {type(error).__name__}: {one_line(error)}"
        ) from error
    return model


def describe(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """The name and the options with which ``build`` makes the same model, so that a bundle can hold it.

    Raises:
        SpecError: ``timm.create_model`` did not make the model, or it was built with options that cannot be read from
            it.
    """
    name = name_of(model)
    if not (getattr(model, "pretrained_cfg", None) and _timm().is_model(name)):
        raise regplug.SpecError(
            f"model {name!r}: expected one that timm.create_model made, because a bundle names its model, got another."
        )
    with torch.device("meta"):
        plain = build(name)
        options = {word: got for word, got in _options_of(model).items() if _options_of(plain).get(word) != got}
        same = build(name, **options) if options else plain
    differing = _traits(model).items() ^ _traits(same).items()
    if differing:
        raise regplug.SpecError(
            f"model {name!r}: expected options that can be read from the model ({', '.join(_options_of(plain))}), got "
            f"others: {min(name for name, _ in differing)} differs; name the model and its options instead: "
            f"attach('timm:{name}', model_options={{...}})."
        )
    return name, options


def _options_of(model: Any) -> dict[str, Any]:
    """The options of ``create_model`` that can be read from a model, by the names that ``__init__`` takes."""
    options = {
        "num_classes": model.num_classes,
        "global_pool": model.global_pool,
        "depth": len(model.blocks),
        "embed_dim": model.embed_dim,
    }
    heads = getattr(getattr(model.blocks[0], "attn", None), "num_heads", None) if len(model.blocks) else None
    if heads is not None:
        options["num_heads"] = heads
    key_heads = [getattr(getattr(block, "attn", None), "num_kv_heads", None) for block in model.blocks]
    if key_heads and None not in key_heads:  # Sapiens2 takes one number for each block
        options["num_kv_heads"] = key_heads
    embed = getattr(model, "patch_embed", None)
    if getattr(embed, "img_size", None) is None:
        return options
    options |= {"img_size": list(embed.img_size), "dynamic_img_size": model.dynamic_img_size}
    if isinstance(getattr(embed, "proj", None), nn.Conv2d):
        options |= {"in_chans": embed.proj.in_channels, "patch_size": embed.proj.kernel_size[0]}
    return options


def _traits(model: nn.Module) -> dict[str, Any]:
    """What may differ between two models of one name and affects tokens: sizes, classes, settings of each module.

    Non-persistent buffers count too, because rotary tables depend on the image's size. Left out are the layers after
    the tokens, settings for training only, and the choice of attention kernel.
    """
    traits: dict[str, Any] = {}
    for name, module in model.named_modules():
        if name.partition(".")[0] in AFTER or IN_TRAINING.search(name.rpartition(".")[2]):
            continue
        traits[name] = type(module).__name__
        for word, value in vars(module).items():
            plain = isinstance(value, (bool, int, float, str, tuple, type(None)))
            if name and plain and not word.startswith("_") and not IN_TRAINING.search(word):
                traits[f"{name}.{word}"] = repr(value)
        for word, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            traits[f"{name}.{word}".lstrip(".")] = tuple(tensor.shape)
    return traits


def _timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise regplug.SpecError(
            f"backbone 'timm': expected the package timm, got none ({error}); use pip install 'regplug-timm[timm]'."
        ) from error
