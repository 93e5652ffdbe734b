"""Describes a module as data: what a bundle's manifest and its weights file say of it."""

from __future__ import annotations

import inspect
import platform
import re

import torch
from torch import nn

from regplug.bundle.golden import GoldenSet
from regplug.bundle.io_signature import IOSignature
from regplug.errors import ExportError, RegplugError
from regplug.format.manifest import (
    BackboneRecord,
    BundleProvenance,
    FiLMRecord,
    LayoutRecord,
    Manifest,
    WeightsNote,
)
from regplug.nn.attached import ATTACHED, conditioner_of
from regplug.nn.conditioner import Conditioner
from regplug.nn.pairing import film_family
from regplug.registry.distributions import UNKNOWN, installed
from regplug.registry.entries import Entry
from regplug.registry.layout import TokenLayout
from regplug.registry.names import OWN
from regplug.registry.options import stored_options
from regplug.registry.references import reference_of
from regplug.registry.registry import Registry
from regplug.registry.spec import ReadoutSpec
from regplug.registry.version import own_version
from regplug.torch_private import cpu_capability

MAX_VERSION = 128  # characters of a version in a manifest


def describe_module(
    spec: ReadoutSpec, module: nn.Module, layout: TokenLayout | None, registry: Registry
) -> WeightsNote:
    """What a module is, for the metadata of its weights file.

    Args:
        spec: What builds the readout.
        module: The readout that the spec builds, a ``Conditioner`` around it, or what ``attach`` returned.
        layout: Where a readout's registers are, as a note; a conditioner has its own.
        registry: Where the FiLM generator's name is looked up.

    Raises:
        ExportError: The FiLM generator or the backbone is not registered.
        SpecError: An option has no JSON form.
    """
    conditioner = conditioner_of(module)
    if conditioner is not None:
        layout = conditioner.layout
    return WeightsNote(
        holds="readout" if conditioner is None else "conditioner",
        strategy=spec.strategy,
        num_registers=spec.num_registers,
        hidden_dim=spec.hidden_dim,
        options=spec.as_dict()["options"],
        film=None if conditioner is None else _describe_film(conditioner, registry),
        layout=None if layout is None else LayoutRecord(**{**layout.as_dict(), "indices": layout.indices}),
        backbone=_describe_backbone(module),
    )


def describe_bundle(
    spec: ReadoutSpec,
    module: nn.Module,
    layout: TokenLayout | None,
    signature: IOSignature,
    golden: GoldenSet,
    registry: Registry,
) -> Manifest:
    """The manifest of a module's bundle, still without programs and files.

    Raises:
        ExportError: The strategy, the FiLM generator or the backbone is not registered.
        SpecError: An option has no JSON form.
    """
    if spec.entry.provenance is None:
        raise ExportError(
            f"strategy {spec.entry.name!r}: expected a registered strategy, got an entry of no plugin; "
            "a bundle names its strategy."
        )
    note = describe_module(spec, module, layout, registry)
    newer = spec.num_registers is None or bool(signature.more_inputs)
    film, backbone = note.film, note.backbone
    return Manifest(
        **vars(note),
        bundle_format=2 if newer else 1,
        cond_dim=spec.cond_dim,
        input=signature.input,
        outputs=signature.outputs,
        golden=golden.golden,
        programs=(),
        files={},
        provenance=BundleProvenance(
            packages=_packages_of(
                module,
                spec.entry,
                registry.film_entry(film.generator) if film else None,
                registry.backbone_entry(backbone.name) if backbone else None,
            ),
            torch=torch.__version__,
            python=platform.python_version(),
            cpu=cpu_capability(),
        ),
        more_inputs=signature.more_inputs,
        parts=signature.parts if newer else None,
    )


def _describe_film(conditioner: Conditioner, registry: Registry) -> FiLMRecord:
    """The conditioner's FiLM generator, by registered name; its options are read from its attributes.

    Raises:
        ExportError: Its class is not registered, or does not keep an option as an attribute.
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
    # only the name of the width matters here, not its value
    stored = stored_options(owner, type(film), {family.width: 0}, options)
    return FiLMRecord(family.full_name, stored, convention.form, convention.order)


def _describe_backbone(module: nn.Module) -> BackboneRecord | None:
    """The backbone of an attached module, as the manifest names it.

    Raises:
        ExportError: No installed plugin offers it.
    """
    if not isinstance(module, ATTACHED) or isinstance(module.source, RegplugError):
        return None
    source = module.source
    if source.entry.provenance is None:
        raise ExportError(f"backbone {source.entry.name!r}: expected a registered one, got an entry of no plugin.")
    return BackboneRecord(source.entry.full_name, source.model, source.options, source.normalized)


def _packages_of(module: nn.Module, *entries: Entry | None) -> dict[str, str]:
    """Distribution -> version: regplug, the distributions of the entries, and those of the classes in the module.

    torch is left out, because a manifest has its own key for it. Classes of no installed distribution are left out too.

    Args:
        module: What is exported.
        *entries: The strategy, the FiLM generator and the backbone; None for one that the module lacks.
    """
    tops = {type(one).__module__.partition(".")[0] for one in module.modules()} - {OWN, "torch"}
    found = {one.name: one.version for one in installed() if one.name and any(map(one.owns, tops))} if tops else {}
    found |= {one.provenance.distribution: one.provenance.version for one in entries if one and one.provenance}
    found[OWN] = own_version()
    found.pop("torch", None)
    return {name: storable(version) for name, version in sorted(found.items())}


def storable(version: str) -> str:
    """A version as a manifest may hold it: other characters become underscores."""
    return re.sub(r"[^A-Za-z0-9._+!-]", "_", version)[:MAX_VERSION] or UNKNOWN
