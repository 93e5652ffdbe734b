"""Finds readouts in an open checkpoint: those that a backbone's plugin knows, and those of regplug's modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from regplug.commands.import_checkpoint.checkpoint import Checkpoint
from regplug.commands.import_checkpoint.own_modules import OwnSite, Query, find_own, nearest_bare
from regplug.commands.import_checkpoint.state_names import (
    MAX_PREFIXES,
    all_prefixes,
    listed,
    wrapper_prefixes,
)
from regplug.errors import BundleError, NameLookupError, PluginError, RegplugError, SpecError, closest
from regplug.nn.backbone import ask_checkpoint_sites, measure_backbone, named_backbone
from regplug.registry.entries import BackboneEntry, CheckpointSite, ReadoutEntry
from regplug.registry.layout import TokenLayout
from regplug.registry.registry import Registry


@dataclass(frozen=True)
class ImportRequest:
    """What to take out of a checkpoint.

    Args:
        backbone: ``NAME[:MODEL]``; with a model, R and D must be that model's. None if R and D are given.
        num_registers: R; the model's when None.
        hidden_dim: D; the model's when None.
        block: Which readout, if there are several.
        every: Take all readouts.
        strategy: The strategy that the readout must have; inferred from names and shapes when None.
        options: The strategy's options; those that shapes show must be the same.
        film_generator: Name of the FiLM generator that follows it; inferred from names and shapes when None.
        film_options: The generator's options; those that shapes show must be the same.
        layout: Fields of the ``TokenLayout``, if the checkpoint does not show them, or shows wrong ones.
        readout_only: Leave the FiLM generator, if there is one.
        state_key: The key of the file that has the weights, ``"ema"``; found when None.
        prefix: Only names with this prefix are read, ``"ema_model."``; all when None.
    """

    backbone: str | None = None
    num_registers: int | None = None
    hidden_dim: int | None = None
    block: str | None = None
    every: bool = False
    strategy: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    film_generator: str | None = None
    film_options: Mapping[str, Any] = field(default_factory=dict)
    layout: Mapping[str, Any] = field(default_factory=dict)
    readout_only: bool = False
    state_key: str | None = None
    prefix: str | None = None


def known_layout(wanted: ImportRequest, registry: Registry) -> tuple[BackboneEntry | None, TokenLayout | None]:
    """The named backbone, and its layout if that is known before the checkpoint is read.

    Raises:
        NameLookupError: There is no backbone of this name.
        SpecError: It refuses the model, or sizes are missing or differ from the model's.
    """
    entry, model = (None, None) if wanted.backbone is None else named_backbone(wanted.backbone, registry)
    if entry is not None and model is not None:
        known = measure_backbone(entry, model).layout
        _check_sizes(wanted, known)
        return entry, known
    _check_sizes(wanted, None)
    if entry is not None and entry.weights is None and wanted.num_registers is None and wanted.hidden_dim is None:
        with suppress(RegplugError):  # most have no model that needs no name
            return entry, measure_backbone(entry).layout
    return entry, None


def _check_sizes(wanted: ImportRequest, known: TokenLayout | None) -> None:
    for word in ("num_registers", "hidden_dim"):
        given = getattr(wanted, word)
        if known is not None and given not in (None, getattr(known, word)):
            raise SpecError(f"{word}: expected {getattr(known, word)}, as {wanted.backbone} has, got {given}.")
    if wanted.backbone is None and None in (wanted.num_registers, wanted.hidden_dim):
        raise SpecError("expected --backbone NAME[:MODEL], or --num-registers and --hidden-dim, got neither.")


def find_known(entry: BackboneEntry, checkpoint: Checkpoint) -> tuple[str, Sequence[CheckpointSite]]:
    """The readouts that the plugin finds, and the prefix before the network's names: the shortest that works."""
    wrappers = list(wrapper_prefixes(checkpoint.shapes))
    for prefix in dict.fromkeys([*wrappers, *all_prefixes(checkpoint.shapes)[:MAX_PREFIXES]]):
        shapes = {n.removeprefix(prefix): shape for n, shape in checkpoint.shapes.items() if n.startswith(prefix)}
        try:
            sites = ask_checkpoint_sites(entry, shapes)
        except SpecError as error:
            if prefix not in wrappers:  # the names of another network, cut in the middle
                continue
            # names and shapes contradict each other: the file is wrong, not the request
            raise BundleError(f"checkpoint {checkpoint.path}: {error}") from error
        if sites:
            return prefix, sites
    return "", ()


def find_own_sites(
    entry: BackboneEntry | None,
    checkpoint: Checkpoint,
    wanted: ImportRequest,
    known: TokenLayout | None,
    registry: Registry,
) -> Sequence[OwnSite]:
    """The readouts of regplug's own modules in the checkpoint."""
    owner = f"checkpoint {checkpoint.path}"
    num_registers = wanted.num_registers or (known.num_registers if known else None)
    hidden_dim = wanted.hidden_dim or (known.hidden_dim if known else None)
    offered = entry.readouts if entry is not None else ()
    if num_registers is not None and hidden_dim is not None:
        sizes = {"num_registers": num_registers, "hidden_dim": hidden_dim}
        if wanted.strategy is not None:
            strategies = [registry.readout_entry(wanted.strategy)]
        else:
            strategies = _installed(offered, registry) if offered else registry.readout_entries()
        films = [one for one in registry.film_entries() if one.gives_pairs]
        if wanted.film_generator is not None:
            films = [registry.film_entry(wanted.film_generator)]
        query = Query(owner, sizes, strategies, wanted.options, films, wanted.film_options, wanted.readout_only)
        if found := find_own(checkpoint.shapes, query, registry):
            return found
        near = nearest_bare(checkpoint.shapes, query)
        if near is not None:
            raise BundleError(f"{owner}: expected the weights of a readout, got no complete ones; nearest: {near}.")
    named = f" of backbone {entry.name!r} ({', '.join(offered) or 'no strategy named'})" if entry is not None else ""
    got = f"got {len(checkpoint.shapes)} tensors and none of them: {listed(checkpoint.names.values())}"
    if num_registers is None or hidden_dim is None:
        raise BundleError(
            f"{owner}: expected weights of a readout{named}, {got}; use --backbone NAME:MODEL, or --num-registers and "
            "--hidden-dim, for those that regplug's own modules hold."
        )
    raise BundleError(f"{owner}: expected weights of a readout{named}, {got}.")


def _installed(names: Sequence[str], registry: Registry) -> list[ReadoutEntry]:
    """The strategies of these names that are installed."""
    found = []
    for name in names:
        with suppress(NameLookupError, PluginError):
            found.append(registry.readout_entry(name))
    return found


def choose_sites(
    checkpoint: Checkpoint, sites: Sequence[CheckpointSite], block: str | None, every: bool
) -> Sequence[CheckpointSite]:
    """The sites that the request means.

    Raises:
        NameLookupError: No site is in this block.
        SpecError: There are several, and the request does not say which.
    """
    blocks = [site.where for site in sites]
    if block is not None:
        if block not in blocks:
            raise NameLookupError(
                f"checkpoint {checkpoint.path}: expected a block with a readout, got {block!r}{closest(block, blocks)}."
            )
        return [sites[blocks.index(block)]]
    if len(sites) > 1 and not every:
        raise SpecError(
            f"checkpoint {checkpoint.path}: expected --block I or --all, as there are readouts in several blocks, "
            f"got neither; known: {', '.join(blocks)}."
        )
    return sites
