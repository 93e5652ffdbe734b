"""Calls a backbone's plugin: for a model's layout, FiLM sites and tokens; finds the plugin that knows a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regplug.errors import NameLookupError, PluginError, RegplugError, SpecError, class_name, one_line
from regplug.registry.default import default_registry
from regplug.registry.deprecation import current_options
from regplug.registry.distributions import normalise
from regplug.registry.entries import BackboneEntry, CheckpointSite, FiLMSite, ReadoutEntry
from regplug.registry.image_preprocess import ImagePreprocess
from regplug.registry.layout import TokenLayout
from regplug.registry.options import bind, parameters_of
from regplug.registry.references import Reference, load_reference, reference_of
from regplug.registry.registry import Registry
from regplug.registry.untrusted_values import repr_of

if TYPE_CHECKING:
    from torch import nn


BLOCK = re.compile(r"[A-Za-z0-9_.-]*")  # part of a file's name


@dataclass(frozen=True)
class BackboneSizes:
    """The sizes that ``measure_backbone`` returns.

    Args:
        layout: Where the registers sit in the tokens, with R and D.
        film_sites: The places that take FiLM pairs; empty for a backbone without FiLM.
    """

    layout: TokenLayout
    film_sites: tuple[FiLMSite, ...]


def measure_backbone(entry: BackboneEntry, model: str | None = None, /, **options: Any) -> BackboneSizes:
    """Build the backbone on the meta device and ask its plugin for layout and FiLM sites.

    Args:
        entry: The backbone.
        model: Which of its models; None for its default.
        **options: Arguments for building the model.

    Raises:
        RegplugError: The plugin refuses: the model's name is unknown, or the model has no registers.
        PluginError: The backbone does not build, or its plugin returns something of another type.
    """
    import torch

    with torch.device("meta"):
        built = build_backbone(entry, model, **options)
    return BackboneSizes(ask_layout(entry, built), ask_film_sites(entry, built))


def layout_of(model: object, *, backbone: str | None = None, registry: Registry | None = None) -> TokenLayout:
    """Where the registers of a model sit in its token sequence, and (``normalized``) whether they come normalised.

    Args:
        model: An instance, on the meta device too, a configuration if its plugin knows it, or a name,
            ``"timm:vit_small_patch14_reg4_dinov2"``. The model is not run.
        backbone: The backbone that the model is of, if several plugins know its class; found by the class when None.
        registry: Where backbones are looked up; the installed plugins when None.

    Raises:
        NameLookupError: No plugin knows the model, or several do.
        SpecError: The model has no registers.
    """
    if isinstance(model, str):
        return measure_backbone(*named_backbone(model if backbone is None else f"{backbone}:{model}", registry)).layout
    return ask_layout(recognise(model, backbone, registry), inside(model))


def named_backbone(name: str, registry: Registry | None = None) -> tuple[BackboneEntry, str | None]:
    """The backbone and the model's name, if any, in ``NAME[:MODEL]``.

    ``NAME`` may be ``distribution:name``; what is left after the longest registered name is the model.

    Raises:
        NameLookupError: No backbone has this name, or several plugins offer it.
    """
    registry = registry or default_registry()
    known = {text for entry in registry.backbone_entries() for text in (entry.name, entry.full_name)}
    found = max((one for one in known if name == one or name.startswith(f"{one}:")), key=len, default=None)
    if found is None:
        head, _, _ = name.partition(":")
        plugins = {record.distribution for record in registry.plugins()}
        # in "tim:vit_base" the backbone is wrong; in "regplug-timm:tim" the plugin exists and has no such backbone
        found = name if normalise(head) in plugins else head
    return registry.backbone_entry(found), name[len(found) + 1 :] or None


def with_defaults(
    entry: BackboneEntry, chosen: ReadoutEntry, options: Mapping[str, Any], registry: Registry | None = None
) -> dict[str, Any]:
    """The options of a strategy on a backbone: the backbone's own fill in for its default strategy."""
    registry = registry or default_registry()
    given = current_options(f"strategy {chosen.name!r}", options, chosen.old_options)
    if entry.default is None:
        return given
    try:
        default = registry.readout_entry(entry.default)
    except RegplugError:  # it is not installed, and another was asked for
        return given
    if default.full_name != chosen.full_name:
        return given
    return {**current_options(f"backbone {entry.name!r}", entry.options, chosen.old_options), **given}


def recognise(model: object, backbone: str | None = None, registry: Registry | None = None) -> BackboneEntry:
    """The backbone that a model is of, by the names along its class's MRO, importing nothing.

    Raises:
        NameLookupError: No plugin knows the model, or several do.
    """
    registry = registry or default_registry()
    if backbone is not None:
        return registry.backbone_entry(backbone)
    cls = type(inside(model))
    names = {reference_of(base) for base in cls.__mro__}
    entries = registry.backbone_entries()
    found = [entry for entry in entries if names.intersection(entry.classes)]
    if not found:
        known = ", ".join(entry.full_name for entry in entries if entry.classes) or "none"
        raise NameLookupError(
            f"model {cls.__name__}: has no registers that an installed plugin knows; backbones that recognise models: "
            f"{known}; use backbone= if it is one of them."
        )
    if len(found) > 1:
        full = [entry.full_name for entry in found]
        raise NameLookupError(
            f"model {cls.__name__}: recognised by {' and '.join(full)}; use backbone={' or '.join(map(repr, full))}."
        )
    return found[0]


def inside(model: object) -> Any:
    """The model without wrappers: ``torch.compile``, EMA, data-parallel."""
    from torch import nn

    from regplug.nn.wrappers import unwrapped

    return unwrapped(model) if isinstance(model, nn.Module) else model


def build_backbone(entry: BackboneEntry, model: str | None = None, /, **options: Any) -> Any:
    """The backbone's model with random weights, on the default device.

    Raises:
        SpecError: ``build`` does not have the option, or its value does not match the type hint.
        RegplugError: The plugin refuses the name or an option.
        PluginError: The plugin fails in another way.
    """
    from regplug.torch_private import outside_inference_mode

    owner = f"backbone {entry.name!r}"
    build = load_reference(owner, entry.build)
    first = ""  # the model's name is passed by position, because each plugin names the parameter differently
    if model is not None:
        first = next(iter(parameters_of(owner, build)), "")
    arguments = bind(owner, build, {first: model} if first else {}, options)
    arguments.pop(first, None)
    with outside_inference_mode():
        return _call(entry, "build", build, *(() if model is None else (model,)), **arguments)


def ask_layout(entry: BackboneEntry, model: Any) -> TokenLayout:
    """The layout that the plugin returns for a model; raises as ``measure_backbone`` does."""
    layout = _call(entry, "layout", entry.layout, model)
    if not isinstance(layout, TokenLayout):
        raise PluginError(f"backbone {entry.name!r}: layout: expected a TokenLayout, got {class_name(layout)}.")
    return layout


def ask_tokens(entry: BackboneEntry, model: Any, normalized: bool) -> nn.Module:
    """The plugin's module from a model's inputs to tokens ``[B, T, D]``; it shares the model's weights.

    Raises:
        SpecError: The backbone offers none, or this model's tokens cannot be read in this way.
    """
    from torch import nn

    if entry.tokens is None:
        raise SpecError(f"backbone {entry.name!r}: expected a backbone that says how its tokens are read, got none.")
    tokens = _call(entry, "tokens", entry.tokens, model, normalized)
    if not isinstance(tokens, nn.Module):
        raise PluginError(f"backbone {entry.name!r}: tokens: expected an nn.Module, got {class_name(tokens)}.")
    return tokens


def ask_description(entry: BackboneEntry, model: Any) -> tuple[str | None, dict[str, Any]]:
    """The name and the options with which ``build`` makes the same model.

    Raises:
        SpecError: The plugin cannot describe this model.
    """
    if entry.describe is None:
        raise SpecError(f"backbone {entry.name!r}: expected a backbone that describes its models, got none.")
    name, options = _call(entry, "describe", entry.describe, model)
    return name, dict(options)


def ask_preprocess(entry: BackboneEntry, model: Any) -> ImagePreprocess | None:
    """How an image file becomes the model's input; None if the plugin does not say.

    Raises:
        RegplugError: The plugin refuses the model.
        PluginError: The plugin fails in another way, or returns something of another type.
    """
    if entry.preprocess is None:
        return None
    found = _call(entry, "preprocess", entry.preprocess, model)
    if not (found is None or isinstance(found, ImagePreprocess)):
        raise PluginError(f"backbone {entry.name!r}: preprocess: expected ImagePreprocess, got {class_name(found)}.")
    return found


def ask_checkpoint_sites(entry: BackboneEntry, shapes: Mapping[str, tuple[int, ...]]) -> tuple[CheckpointSite, ...]:
    """The readouts that the plugin finds by a checkpoint's names and shapes; may be empty.

    Raises:
        SpecError: The backbone does not search checkpoints.
        RegplugError: The plugin refuses the checkpoint.
        PluginError: The plugin fails in another way, or returns anything but sites of this checkpoint.
    """
    owner = f"backbone {entry.name!r}"
    if entry.weights is None:
        raise SpecError(f"{owner}: expected a backbone that finds readouts in checkpoints, got one that does not.")
    sites = _call(entry, "weights", entry.weights, dict(shapes))
    if not isinstance(sites, Sequence) or not all(isinstance(site, CheckpointSite) for site in sites):
        raise PluginError(f"{owner}: weights: expected a sequence of CheckpointSite, got {repr_of(sites)}.")
    for site in sites:
        if not BLOCK.fullmatch(site.where) or sum(other.where == site.where for other in sites) > 1:
            raise PluginError(f"{owner}: weights: expected a different block for each site, got {repr_of(site.where)}.")
        unknown = {*site.readout.values(), *site.film_weights.values()} - set(shapes)
        if unknown:
            raise PluginError(f"{owner}: weights: expected names of the checkpoint, got {', '.join(sorted(unknown))}.")
    return tuple(sites)


def ask_film_sites(entry: BackboneEntry, model: Any) -> tuple[FiLMSite, ...]:
    """The FiLM sites that the plugin names in a model; may be empty."""
    sites = () if entry.film_sites is None else tuple(_call(entry, "film_sites", entry.film_sites, model))
    for site in sites:
        if not isinstance(site, FiLMSite):
            raise PluginError(f"backbone {entry.name!r}: film_sites: expected FiLMSite, got {repr_of(site)}.")
    return sites


def _call(entry: BackboneEntry, word: str, reference: Reference, /, *arguments: Any, **options: Any) -> Any:
    target = load_reference(f"backbone {entry.name!r}", reference)
    try:
        return target(*arguments, **options)
    except RegplugError:  # meant for the user: an unknown model, or one without registers
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the plugin's code may raise anything; the message names the backbone
        raise PluginError(
            f"backbone {entry.name!r}: expected {word} to answer, got {class_name(error)}: {one_line(error)}"
        ) from error
