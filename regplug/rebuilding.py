"""Makes the module that a bundle describes out of the installed classes: data in, no code of the bundle run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regplug.conditioner import Conditioner
from regplug.entries import FiLMEntry, load_reference, reference_of
from regplug.errors import BundleError, ExportError, SpecError
from regplug.manifest import FiLMRecord, Manifest
from regplug.options import bind
from regplug.pairing import film_family
from regplug.registry import Registry
from regplug.spec import json_options, specify
from regplug.weights import load_state
from regplug.widths import construct


def rebuild(path: str, manifest: Manifest, state: Mapping[str, Tensor], registry: Registry) -> nn.Module:
    """The readout or conditioner that the manifest describes, in eval mode, with these weights.

    The caller's random state is left alone, and so are default device and dtype.

    Args:
        path: The bundle's folder, for messages.
        manifest: What to build; names are looked up, never imported by path.
        state: The weights.
        registry: Where the names are looked up.

    Raises:
        NameLookupError: The strategy or the FiLM generator is not installed.
        PluginError: The plugin that offers it is broken.
        BundleError: The installed class refuses the sizes or options, or has other weights or another width.
    """
    try:
        module = _build(path, manifest, registry)
    except SpecError as error:
        raise BundleError(f"bundle {path}: the installed {manifest.strategy}: {error}") from error
    load_state(f"bundle {path}: weights.safetensors", module, state)
    return module.eval()


def _build(path: str, manifest: Manifest, registry: Registry) -> nn.Module:
    entry = registry.readout_entry(manifest.strategy)
    spec = specify(entry, manifest.num_registers, manifest.hidden_dim, manifest.options)
    if spec.cond_dim != manifest.cond_dim:
        raise BundleError(
            f"bundle {path}: cond_dim: expected {manifest.cond_dim}, got {spec.cond_dim} from the installed "
            f"{manifest.strategy}; it was made with {_made_with(manifest)}."
        )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        module = spec.build()
        if manifest.film is not None and (layout := manifest.token_layout) is not None:
            family = registry.film_entry(manifest.film.generator)
            film = _build_film(family, manifest)
            module = Conditioner(layout, module, film, form=manifest.film.form, order=family.order, registry=registry)
        return module.to(getattr(torch, manifest.input.dtype))


def describe_film(conditioner: Conditioner, registry: Registry) -> FiLMRecord:
    """The conditioner's FiLM generator by registered name, with the options that its attributes tell.

    Raises:
        ExportError: Its class is not registered, or does not keep an option that it was built with.
    """
    film = conditioner.film
    owner = f"FiLM generator {type(film).__name__}"
    family = film_family(film, registry)
    if family is None or reference_of(type(film)) != reference_of(family.build):
        known = ", ".join(entry.full_name for entry in registry.film_entries())
        raise ExportError(
            f"{owner}: expected a registered class, got {reference_of(type(film))}; a bundle names its generator; "
            f"known: {known}."
        )
    options = {}
    for name, parameter in inspect.signature(type(film)).parameters.items():
        if name == family.width:
            continue
        if hasattr(film, name):
            options[name] = getattr(film, name)
        elif parameter.default is inspect.Parameter.empty:
            raise ExportError(f"{owner}: expected an attribute {name!r} as its constructor takes, got none.")
    convention = conditioner.convention
    return FiLMRecord(family.full_name, json_options(owner, options), convention.form, convention.order)


def _build_film(family: FiLMEntry, manifest: Manifest) -> nn.Module:
    owner = f"FiLM generator {family.name!r}"
    build = load_reference(owner, family.build)
    options: Mapping[str, Any] = manifest.film.options if manifest.film else {}
    return construct(owner, build, bind(owner, build, {family.width: manifest.cond_dim}, options))


def _made_with(manifest: Manifest) -> str:
    plugin = manifest.provenance.plugin
    return f"{plugin.distribution} {plugin.version}"
