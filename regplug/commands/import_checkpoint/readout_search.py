"""Looks for readouts in an open checkpoint: those that a backbone's plugin knows, and those of regplug's modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from regplug.commands.import_checkpoint.checkpoint import Checkpoint
from regplug.commands.import_checkpoint.own_keys import Asked, OwnSite, find_own, nearest_bare
from regplug.commands.import_checkpoint.state_names import MOST_PREFIXES, all_prefixes, listed, wrapper_prefixes
from regplug.errors import BundleError, NameLookupError, PluginError, RegplugError, SpecError, closest
from regplug.nn.backbone import ask_checkpoint_sites, measure_backbone, named_backbone
from regplug.registry.entries import BackboneEntry, CheckpointSite, ReadoutEntry
from regplug.registry.layout import TokenLayout
from regplug.registry.registry import Registry


@dataclass(frozen=True)
class Wanted:
    """What is asked for of a checkpoint.

    Args:
        backbone: ``NAME[:MODEL]``; with a model, R and D must be that model's. None where R and D are given.
        num_registers: R; the model's when None.
        hidden_dim: D; the model's when None.
        block: Which readout, where there are several.
        every: All of them.
        strategy: What it must be; what names and shapes tell when None.
        options: The strategy's options; those that the shapes tell must be the same.
        film_generator: The FiLM generator behind it, by name; what names and shapes tell when None.
        film_options: Its options, likewise.
        layout: Where the registers sit, as fields of a ``TokenLayout``, where the checkpoint does not tell, or wrongly.
        readout_only: Leave the FiLM generator, if there is one.
        state_key: The key of the file that has the weights, ``"ema"``; found when None.
        prefix: What the names begin with that are looked at, ``"ema_model."``; all when None.
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


def known_layout(wanted: Wanted, registry: Registry) -> tuple[BackboneEntry | None, TokenLayout | None]:
    """The backbone that was named, and its layout as far as it is known before the checkpoint is looked at.

    Raises:
        NameLookupError: There is none of this name.
        SpecError: It refuses the model, or the sizes that were given are others, or are none.
    """
    entry, model = (None, None) if wanted.backbone is None else named_backbone(wanted.backbone, registry)
    if entry is not None and model is not None:
        known = measure_backbone(entry, model).layout
        _check_sizes(wanted, known)
        return entry, known
    _check_sizes(wanted, None)
    if entry is not None and entry.weights is None and wanted.num_registers is None and wanted.hidden_dim is None:
        with suppress(RegplugError):  # most have no model without a name
            return entry, measure_backbone(entry).layout
    return entry, None


def _check_sizes(wanted: Wanted, known: TokenLayout | None) -> None:
    for word in ("num_registers", "hidden_dim"):
        given = getattr(wanted, word)
        if known is not None and given not in (None, getattr(known, word)):
            raise SpecError(f"{word}: expected {getattr(known, word)}, as {wanted.backbone} has, got {given}.")
    if wanted.backbone is None and None in (wanted.num_registers, wanted.hidden_dim):
        raise SpecError("expected --backbone NAME[:MODEL], or --num-registers and --hidden-dim, got neither.")


def find_known(entry: BackboneEntry, checkpoint: Checkpoint) -> tuple[str, Sequence[CheckpointSite]]:
    """The readouts, and the prefix of the network's own names: the shortest with which there are any."""
    wrappers = list(wrapper_prefixes(checkpoint.shapes))
    for prefix in dict.fromkeys([*wrappers, *all_prefixes(checkpoint.shapes)[:MOST_PREFIXES]]):
        shapes = {n.removeprefix(prefix): shape for n, shape in checkpoint.shapes.items() if n.startswith(prefix)}
        try:
            sites = ask_checkpoint_sites(entry, shapes)
        except SpecError as error:
            if prefix not in wrappers:  # another network's names, cut in their midst
                continue
            # names and shapes that contradict each other: the file's fault, not that of what was asked
            raise BundleError(f"checkpoint {checkpoint.path}: {error}") from error
        if sites:
            return prefix, sites
    return "", ()


def find_own_sites(
    entry: BackboneEntry | None,
    checkpoint: Checkpoint,
    wanted: Wanted,
    known: TokenLayout | None,
    registry: Registry,
) -> Sequence[OwnSite]:
    """What regplug's own modules keep in the checkpoint."""
    owner = f"checkpoint {checkpoint.path}:"
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
        asked = Asked(owner, sizes, strategies, wanted.options, films, wanted.film_options, wanted.readout_only)
        if found := find_own(checkpoint.shapes, asked, registry):
            return found
        near = nearest_bare(checkpoint.shapes, asked)
        if near is not None:
            raise BundleError(f"{owner} expected the weights of a readout, got none that are whole; nearest: {near}.")
    named = f" of backbone {entry.name!r} ({', '.join(offered) or 'no strategy named'})" if entry is not None else ""
    got = f"got {len(checkpoint.shapes)} tensors and none of them: {listed(checkpoint.names.values())}"
    if num_registers is None or hidden_dim is None:
        raise BundleError(
            f"{owner} expected weights of a readout{named}, {got}; use --backbone NAME:MODEL, or --num-registers and "
            "--hidden-dim, for those that regplug's own modules hold."
        )
    raise BundleError(f"{owner} expected weights of a readout{named}, {got}.")


def _installed(names: Sequence[str], registry: Registry) -> list[ReadoutEntry]:
    """The strategies of these names, as far as plugins are here."""
    found = []
    for name in names:
        with suppress(NameLookupError, PluginError):
            found.append(registry.readout_entry(name))
    return found


def chosen(
    checkpoint: Checkpoint, sites: Sequence[CheckpointSite], block: str | None, every: bool
) -> Sequence[CheckpointSite]:
    """The sites that are meant.

    Raises:
        NameLookupError: There is none of this block.
        SpecError: There are several, and nothing says which.
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
            f"checkpoint {checkpoint.path}: expected --block I or --all, for there are readouts in several blocks, "
            f"got neither; known: {', '.join(blocks)}."
        )
    return sites
