"""Rebuilds the module that a bundle describes from installed classes, without running code from the bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor, nn

from regplug.bundle.io_signature import part_record
from regplug.bundle.outline import build_outlined
from regplug.errors import BundleError, NameLookupError, SpecError
from regplug.format.manifest import WEIGHTS, BackboneRecord, FiLMRecord, Manifest
from regplug.format.strict_json import format_value, to_ascii
from regplug.format.weights import check_state, load_state, types_of
from regplug.nn.attached import ATTACHED, AttachedConditioner, AttachedReadout, BackboneSource
from regplug.nn.backbone import build_backbone
from regplug.nn.conditioner import BuiltReadout, Conditioner
from regplug.nn.readouts.join_parts import parts_of
from regplug.nn.tokens import tokens_of
from regplug.registry.cond_dim import construct
from regplug.registry.dtypes import torch_dtype
from regplug.registry.entries import BackboneEntry, FiLMEntry, ReadoutEntry
from regplug.registry.layout import TokenLayout
from regplug.registry.options import bind
from regplug.registry.readout_inputs import MASK
from regplug.registry.references import load_reference
from regplug.registry.registry import Registry
from regplug.registry.spec import ReadoutSpec, specify
from regplug.torch_private import persist_buffers

MAX_SMALL_COUNT = 1 << 16  # a loop of this length takes little time and memory


@dataclass(frozen=True)
class _Entries:
    """The installed entries that the manifest names."""

    strategy: ReadoutEntry
    film: FiLMEntry | None
    backbone: BackboneEntry | None


def rebuild(path: str, manifest: Manifest, state: Mapping[str, Tensor], registry: Registry) -> nn.Module:
    """The readout or conditioner that the manifest describes, with its backbone if it has one, in eval mode.

    The caller's random state, default device and default dtype are left alone.

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

    def compare(outline: nn.Module) -> None:
        if isinstance(outline, ATTACHED):
            persist_buffers(outline.tokens)
        check_state(owner, types_of(outline.state_dict()), state)

    try:
        _check_counts(path, manifest, state)
        with torch.random.fork_rng(devices=[]):
            build = _builder(path, manifest, _find_entries(manifest, registry), registry)
            module = build_outlined(build, compare, types_of(state))
    except SpecError as error:
        text = to_ascii(str(error))  # it may quote an option
        raise BundleError(f"bundle {path}: the installed {manifest.strategy}: {text}") from error
    undo = persist_buffers(module.tokens) if isinstance(module, ATTACHED) else None
    load_state(owner, module, state)
    if undo:
        undo()
    return module.eval()


def _check_counts(path: str, manifest: Manifest, state: Mapping[str, Tensor]) -> None:
    """Refuse an option with a larger count than the bundle has numbers: constructors loop over some counts.

    The strategy's options are not checked: an integer there may be a seed.

    Raises:
        BundleError: The sum of an option's integers is larger than any width, length or number of layers can be.
    """
    numbers = sum(tensor.numel() for tensor in state.values())
    most = max(numbers, prod(size for size in manifest.input.shape if isinstance(size, int)), MAX_SMALL_COUNT)
    film, backbone = manifest.film, manifest.backbone
    counted = [(f"FiLM generator {film.generator!r}", film.options)] if film else []
    counted += [(f"backbone {backbone.name!r}", backbone.options)] if backbone else []
    for owner, options in counted:
        for option, value in options.items():
            if (total := _counted(value)) > most:
                raise BundleError(
                    f"bundle {path}: {owner}: option {option!r}: expected at most {most}, as many numbers as the "
                    f"weights hold, got {total}."
                )


def _counted(value: object) -> int:
    """The sum of all absolute integers in a JSON value: a list may have one count for each stage."""
    if isinstance(value, int):
        return abs(value)
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return sum(map(_counted, items))


def _find_entries(manifest: Manifest, registry: Registry) -> _Entries:
    film, backbone = manifest.film, manifest.backbone
    return _Entries(
        registry.readout_entry(manifest.strategy),
        None if film is None else registry.film_entry(film.generator),
        None if backbone is None else registry.backbone_entry(backbone.name),
    )


def _builder(path: str, manifest: Manifest, entries: _Entries, registry: Registry) -> Callable[[], nn.Module]:
    """Builds the outline and the module from one spec, whose width is measured once.

    It is measured in the first call, where the caller limits what may be built: an option may ask for a billion parts.
    """

    @cache
    def spec() -> ReadoutSpec:
        return specify(entries.strategy, manifest.num_registers, manifest.hidden_dim, manifest.options)

    return lambda: _build(path, manifest, spec(), entries, registry)


def _build(path: str, manifest: Manifest, spec: ReadoutSpec, entries: _Entries, registry: Registry) -> nn.Module:
    """The module with initial weights, on the default device."""
    if spec.cond_dim != manifest.cond_dim:
        raise BundleError(
            f"bundle {path}: cond_dim: expected {manifest.cond_dim}, got {spec.cond_dim} from the installed "
            f"{manifest.strategy}; it was made with {manifest.made_with}."
        )
    _check_inputs(path, manifest, spec)
    readout = BuiltReadout(spec)
    module, layout = readout.module, manifest.token_layout
    if manifest.film is not None and entries.film is not None and layout is not None:
        film = _build_film(entries.film, manifest.film, spec.cond_dim)
        order = entries.film.order
        module = Conditioner(layout, readout, film, form=manifest.film.form, order=order, registry=registry)
    if manifest.backbone is not None and entries.backbone is not None and layout is not None:
        module = _attach(path, manifest.backbone, entries.backbone, layout, module, spec)
    return module.to(torch_dtype(manifest.input.dtype))


def _check_inputs(path: str, manifest: Manifest, spec: ReadoutSpec) -> None:
    """Refuse parts, vectors and a mask that are not the strategy's: each call of a program is checked by them."""
    parts = parts_of(spec)
    wanted = None if parts is None or manifest.bundle_format == 1 else tuple(map(part_record, parts))
    vectors = [(one.part.name, one.part.width) for one in parts or () if one.part.width]
    found = [(one.name, one.shape[-1]) for one in manifest.more_inputs if one.name != MASK]
    has_mask = len(found) < len(manifest.more_inputs)
    takes_mask = spec.takes_mask if parts is None else any(one.takes_mask for one in parts)
    for key, expected, got in (
        ("parts", wanted and list(map(asdict, wanted)), manifest.parts and list(map(asdict, manifest.parts))),
        ("more_inputs", vectors, found),
        ("more_inputs", "no mask", "a mask" if has_mask and not takes_mask else "no mask"),
    ):
        if expected != got:
            raise BundleError(
                f"bundle {path}: {key}: expected {format_value(expected)} of the installed {manifest.strategy}, got "
                f"{format_value(got)}."
            )


def _build_film(entry: FiLMEntry, record: FiLMRecord, cond_dim: int) -> nn.Module:
    owner = f"FiLM generator {entry.name!r}"
    build = load_reference(owner, entry.build)
    return construct(owner, build, bind(owner, build, {entry.width: cond_dim}, record.options))


def _attach(
    path: str, record: BackboneRecord, entry: BackboneEntry, layout: TokenLayout, module: nn.Module, spec: ReadoutSpec
) -> nn.Module:
    """The backbone that the record names, with this readout or conditioner behind it."""
    try:
        network = build_backbone(entry, record.model, **record.options)
        tokens, found = tokens_of(entry, network, record.normalized)
    except (SpecError, NameLookupError) as error:
        raise BundleError(f"bundle {path}: the installed {record.name}: {to_ascii(str(error))}") from error
    if not found.reads(layout):
        raise BundleError(f"bundle {path}: layout: expected {layout}, got {found} from the installed {record.name}.")
    source = BackboneSource(entry, record.model, record.options, record.normalized)
    if isinstance(module, Conditioner):
        return AttachedConditioner(tokens, module, spec, source)
    return AttachedReadout(tokens, layout, module, spec, source)
