"""Makes the module that a bundle describes out of the installed classes: data in, no code of the bundle run."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from regplug.attachment import AttachedConditioner, AttachedReadout, BackboneSource
from regplug.backbone import build_backbone
from regplug.conditioner import Conditioner
from regplug.entries import FiLMEntry, load_reference, reference_of
from regplug.errors import BundleError, ExportError, NameLookupError, RegplugError, SpecError
from regplug.layout import TokenLayout
from regplug.manifest import MAX_TENSORS, WEIGHTS, BackboneRecord, FiLMRecord, Manifest
from regplug.options import bind
from regplug.pairing import film_family
from regplug.registry import Registry
from regplug.spec import ReadoutSpec, json_options, specify
from regplug.strict import printable
from regplug.tokens import tokens_of
from regplug.torch_private import persist_buffers
from regplug.weights import check_state, load_state, types_of
from regplug.widths import construct

ATTACHED = (AttachedReadout, AttachedConditioner)
MAX_PARTS = 16 * MAX_TENSORS  # most parts of a network are modules without weights


def rebuild(path: str, manifest: Manifest, state: Mapping[str, Tensor], registry: Registry) -> nn.Module:
    """The readout or conditioner that the manifest describes, with its backbone if it has one, in eval mode.

    The caller's random state is left alone, and so are default device and dtype.

    Args:
        path: The bundle's folder, for messages.
        manifest: What to build; names are looked up, never imported by path.
        state: The weights.
        registry: Where the names are looked up.

    Raises:
        NameLookupError: The strategy, the FiLM generator or the backbone is not installed.
        PluginError: The plugin that offers it is broken.
        BundleError: The installed class refuses the sizes or options, or has other weights or another width.
    """
    owner = f"bundle {path}: {WEIGHTS}"
    try:
        with torch.random.fork_rng(devices=[]):
            _check_outline(owner, path, manifest, state, registry)
            with torch.device("cpu"):
                module = _build(path, manifest, registry)
    except SpecError as error:
        said = printable(str(error))  # it may quote an option
        raise BundleError(f"bundle {path}: the installed {manifest.strategy}: {said}") from error
    undo = persist_buffers(module.tokens) if isinstance(module, ATTACHED) else None
    load_state(owner, module, state)
    if undo:
        undo()
    return module.eval()


def _check_outline(owner: str, path: str, manifest: Manifest, state: Mapping[str, Tensor], registry: Registry) -> None:
    """Compare all weights before one is allocated: a manifest may ask for a module of any size."""
    try:
        with torch.device("meta"), _at_most(MAX_PARTS):
            outline = _build(path, manifest, registry)
    except SpecError as error:
        if "meta" not in str(error):
            raise
        return  # a FiLM class that reads its own numbers as it is built, which torch refuses there by this word
    if isinstance(outline, ATTACHED):
        persist_buffers(outline.tokens)
    check_state(owner, types_of(outline.state_dict()), state)


@contextmanager
def _at_most(parts: int) -> Iterator[None]:
    """Refuse to build on when a module has so many parts: an option may ask for a billion of them.

    Raises:
        SpecError: It has.
    """
    here, count = threading.get_ident(), 0

    def refuse(module: nn.Module, name: str, part: object) -> None:
        nonlocal count
        count += threading.get_ident() == here  # the hooks see what other threads build
        if count > parts:
            raise SpecError(f"expected a module of at most {parts} parts, got more.")

    hooks = [
        register_module_parameter_registration_hook(refuse),
        register_module_buffer_registration_hook(refuse),
        register_module_module_registration_hook(refuse),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _build(path: str, manifest: Manifest, registry: Registry) -> nn.Module:
    """The module with weights of its own, on the default device."""
    entry = registry.readout_entry(manifest.strategy)
    spec = specify(entry, manifest.num_registers, manifest.hidden_dim, manifest.options)
    if spec.cond_dim != manifest.cond_dim:
        raise BundleError(
            f"bundle {path}: cond_dim: expected {manifest.cond_dim}, got {spec.cond_dim} from the installed "
            f"{manifest.strategy}; it was made with {manifest.made_with}."
        )
    module = spec.build()
    layout = manifest.token_layout
    if manifest.film is not None and layout is not None:
        family = registry.film_entry(manifest.film.generator)
        film = _build_film(family, manifest)
        module = Conditioner(layout, module, film, form=manifest.film.form, order=family.order, registry=registry)
    if manifest.backbone is not None and layout is not None:
        module = _attach(path, manifest.backbone, layout, module, spec, registry)
    return module.to(getattr(torch, manifest.input.dtype))


def _attach(
    path: str, record: BackboneRecord, layout: TokenLayout, module: nn.Module, spec: ReadoutSpec, registry: Registry
) -> nn.Module:
    """The backbone that the record names, with this readout or conditioner behind it."""
    entry = registry.backbone_entry(record.name)
    try:
        network = build_backbone(entry, record.model, **record.options)
        tokens, found = tokens_of(entry, network, record.normalized)
    except (SpecError, NameLookupError) as error:
        raise BundleError(f"bundle {path}: the installed {record.name}: {printable(str(error))}") from error
    if found != layout:
        raise BundleError(f"bundle {path}: layout: expected {layout}, got {found} from the installed {record.name}.")
    source = BackboneSource(entry, record.model, record.options, record.normalized)
    if isinstance(module, Conditioner):
        return AttachedConditioner(tokens, module, spec, source)
    return AttachedReadout(tokens, layout, module, spec, source)


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


def describe_backbone(module: nn.Module) -> BackboneRecord | None:
    """The backbone inside an attached module, as the manifest names it.

    Raises:
        ExportError: It is of no installed plugin.
    """
    if not isinstance(module, ATTACHED) or isinstance(module.source, RegplugError):
        return None
    source = module.source
    if source.entry.provenance is None:
        raise ExportError(f"backbone {source.entry.name!r}: expected a registered one, got an entry of no plugin.")
    return BackboneRecord(source.entry.full_name, source.model, source.options, source.normalized)


def _build_film(family: FiLMEntry, manifest: Manifest) -> nn.Module:
    owner = f"FiLM generator {family.name!r}"
    build = load_reference(owner, family.build)
    options: Mapping[str, Any] = manifest.film.options if manifest.film else {}
    return construct(owner, build, bind(owner, build, {family.width: manifest.cond_dim}, options))
