"""Takes trained readouts, and the FiLM generators behind them, out of a whole network's checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regplug.backbone import ask_checkpoint_sites, measure_backbone, named_backbone
from regplug.checkpoint import Checkpoint, listed, open_checkpoint, unwrapped, wrapper_prefixes
from regplug.conditioner import Conditioner
from regplug.entries import BackboneEntry, CheckpointSite
from regplug.errors import BundleError, NameLookupError, SpecError
from regplug.installed import default_registry
from regplug.layout import TokenLayout
from regplug.options import closest
from regplug.pairing import pair
from regplug.registry import Registry
from regplug.spec import ReadoutSpec
from regplug.weights import check_state, dtype_name, save_tensors, types_of
from regplug.weightsfile import describe

DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Imported:
    """One trained readout, or conditioner, out of a checkpoint.

    Args:
        block: Where in the network it stands; empty where there is one only.
        spec: What builds the readout.
        metadata: What its weights file says of itself.
        dtype: Of its weights, ``float32``.
        state: Its weights.
        tensors: Their names, each with the one that the checkpoint has.
    """

    block: str
    spec: ReadoutSpec
    metadata: Mapping[str, Any]
    dtype: str
    state: Mapping[str, Tensor]
    tensors: Mapping[str, str]

    def to_bytes(self) -> bytes:
        """The weights file, as ``regplug export --weights`` takes it."""
        return save_tensors(self.state, self.metadata)


@dataclass(frozen=True)
class Import:
    """What was taken out of a checkpoint, and what was left.

    Args:
        checkpoint: The checkpoint.
        prefix: What stood before the network's own names.
        readouts: What was taken, block by block.
        left: Names of the tensors that were left, as the checkpoint has them.
        left_bytes: Their bytes.
    """

    checkpoint: Checkpoint
    prefix: str
    readouts: tuple[Imported, ...]
    left: tuple[str, ...]
    left_bytes: int


def import_readouts(
    path: str | os.PathLike[str],
    backbone: str,
    *,
    block: str | None = None,
    every: bool = False,
    strategy: str | None = None,
    options: Mapping[str, Any] | None = None,
    layout: Mapping[str, Any] | None = None,
    readout_only: bool = False,
    registry: Registry | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Import:
    """Find trained readouts in a checkpoint, and check them against what regplug builds; writes nothing.

    Args:
        path: A checkpoint of the whole network; see ``open_checkpoint``.
        backbone: ``NAME[:MODEL]``; with a model, R and D must be that model's.
        block: Which readout, where there are several.
        every: All of them.
        strategy: What it must be; what names and shapes tell when None.
        options: The strategy's options; those that the shapes tell must be the same.
        layout: Where the registers sit, as fields of a ``TokenLayout``, where the checkpoint does not tell, or wrongly.
        readout_only: Leave the FiLM generator, if there is one.
        registry: Where names are looked up; the installed plugins when None.
        progress: Called with a word on each step.

    Raises:
        SpecError: What is asked for contradicts the checkpoint, or is not all that is needed.
        NameLookupError: No such backbone, block or strategy.
        BundleError: The file is no checkpoint, holds none of the backbone's readouts, or weights that do not fit.
        PluginError: The backbone's plugin is broken.
    """
    registry = registry or default_registry()
    entry, model = named_backbone(backbone, registry)
    known = measure_backbone(entry, model).layout if model is not None else None
    progress("opening")
    checkpoint = open_checkpoint(path)
    progress("looking for readouts")
    prefix, sites = _find(entry, checkpoint)
    taker = _Taker(checkpoint, prefix, known, strategy, options or {}, layout or {}, readout_only, registry)
    readouts = []
    for site in _chosen(checkpoint, sites, block, every):
        progress(f"block {site.where}" if site.where else "reading")
        readouts.append(taker.take(site))
    taken = {name for one in readouts for name in one.tensors.values()}
    return Import(
        checkpoint,
        prefix,
        tuple(readouts),
        tuple(sorted(set(checkpoint.names.values()) - taken)),
        checkpoint.nbytes - sum(tensor.nbytes for one in readouts for tensor in one.state.values()),
    )


def _find(entry: BackboneEntry, checkpoint: Checkpoint) -> tuple[str, Sequence[CheckpointSite]]:
    """The readouts, and what stands before the network's own names: the shortest with which there are any."""
    for prefix in wrapper_prefixes(checkpoint.shapes):
        shapes = {n.removeprefix(prefix): shape for n, shape in checkpoint.shapes.items() if n.startswith(prefix)}
        try:
            sites = ask_checkpoint_sites(entry, shapes)
        except SpecError as error:
            if entry.weights is None:
                raise
            # names and shapes that contradict each other: the file's fault, not that of what was asked
            raise BundleError(f"checkpoint {checkpoint.path}: {error}") from error
        if sites:
            return prefix, sites
    raise BundleError(
        f"checkpoint {checkpoint.path}: expected weights of a readout of backbone {entry.name!r} "
        f"({', '.join(entry.readouts) or 'no strategy named'}), got {len(checkpoint.shapes)} tensors and none of them: "
        f"{listed(checkpoint.names.values())}."
    )


def _chosen(
    checkpoint: Checkpoint, sites: Sequence[CheckpointSite], block: str | None, every: bool
) -> Sequence[CheckpointSite]:
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


@dataclass(frozen=True)
class _Taker:
    """Takes sites out of one checkpoint; the fields are those of ``import_readouts``."""

    checkpoint: Checkpoint
    prefix: str
    known: TokenLayout | None
    strategy: str | None
    options: Mapping[str, Any]
    layout: Mapping[str, Any]
    readout_only: bool
    registry: Registry

    def take(self, site: CheckpointSite) -> Imported:
        where = f" block {site.where}:" if site.where else ""
        owner = f"checkpoint {self.checkpoint.path}:{where}"
        spec = self._spec(owner, site)
        film = site.film is not None and not self.readout_only
        layout = self._layout(owner, site, demanded=film)
        names = {**site.readout}
        if film:
            names = {f"readout.{key}": name for key, name in site.readout.items()}
            names |= {f"film.{key}": name for key, name in site.film_weights.items()}
        names = {key: self.prefix + name for key, name in names.items()}
        self._check_single(owner, names)
        state = {key: self.checkpoint.read(name) for key, name in sorted(names.items())}
        dtype = _common_dtype(owner, names, state)
        with torch.device("meta" if spec.measured else "cpu"):
            module = self._build(site, spec, layout if film else None).to(getattr(torch, dtype))
        check_state(owner.removesuffix(":"), types_of(module.state_dict()), state)
        _check_finite(owner, names, state)
        metadata = describe(module, spec, layout, self.registry)
        original = {key: self.checkpoint.names[name] for key, name in names.items()}
        return Imported(site.where, spec, metadata, dtype, state, original)

    def _spec(self, owner: str, site: CheckpointSite) -> ReadoutSpec:
        found = self.registry.readout_entry(site.strategy).full_name
        if self.strategy is not None:
            asked = self.registry.readout_entry(self.strategy).full_name
            if asked != found:
                raise SpecError(f"{owner} strategy: expected {found!r}, as names and shapes tell, got {asked!r}.")
        told = json.loads(json.dumps(dict(site.options)))  # tuples are the lists that they are in JSON
        for option, value in self.options.items():
            if option in told and told[option] != value:
                raise SpecError(
                    f"{owner} option {option!r}: expected {told[option]!r}, as the shapes tell, got {value!r}."
                )
        sizes = {"num_registers": site.num_registers, "hidden_dim": site.hidden_dim}
        if self.known is not None:
            for word, size in sizes.items():
                wanted = getattr(self.known, word)
                if size != wanted:
                    raise SpecError(f"{owner} {word}: expected {wanted}, as the model has, got {size} by the shapes.")
        clashes = sorted({"strategy", *sizes} & {*self.options})
        if clashes:
            raise SpecError(f"option {clashes[0]!r}: expected an option of the strategy, got one of the sizes.")
        return self.registry.resolve(found, **sizes, **{**site.options, **self.options})

    def _layout(self, owner: str, site: CheckpointSite, *, demanded: bool) -> TokenLayout | None:
        found = site.layout or self.known
        if self.layout:
            sizes = {"num_registers": site.num_registers, "hidden_dim": site.hidden_dim}
            # names and shapes may tell less than the caller knows: of registers put first by an older network, say
            found = TokenLayout.from_dict({**(found.as_dict() if found else sizes), **self.layout})
            if (found.num_registers, found.hidden_dim) != (site.num_registers, site.hidden_dim):
                raise SpecError(f"{owner} layout: expected {sizes}, as the shapes tell, got {found}.")
        if found is None and demanded:
            raise SpecError(
                f"{owner} layout: expected --layout start=N for the FiLM generator that was found, as the checkpoint "
                "does not tell it, got none; use --readout-only to leave the FiLM generator."
            )
        return found

    def _check_single(self, owner: str, names: Mapping[str, str]) -> None:
        """Refuse a checkpoint that has a weight twice, behind two wrappers: nobody could tell which is meant."""
        wanted = {unwrapped(name): name for name in names.values()}
        for name in self.checkpoint.names:
            twin = wanted.get(unwrapped(name), name)
            if twin != name:
                first, second = sorted(self.checkpoint.names[one] for one in (name, twin))
                raise BundleError(f"{owner} expected one tensor {unwrapped(name)!r}, got {first!r} and {second!r}.")

    def _build(self, site: CheckpointSite, spec: ReadoutSpec, layout: TokenLayout | None) -> nn.Module:
        readout = spec.build()
        if site.film is None or layout is None:
            return readout
        family = self.registry.film_entry(site.film)
        film = pair(spec, family.build, width=family.width, registry=self.registry, **site.film_options)
        return Conditioner(layout, readout, film, family.form, family.order, self.registry)


def _common_dtype(owner: str, names: Mapping[str, str], state: Mapping[str, Tensor]) -> str:
    """The one dtype of all weights."""
    floats = {dtype_name(tensor): names[key] for key, tensor in state.items() if tensor.is_floating_point()}
    if len(floats) > 1:
        got = " and ".join(f"{dtype} ({name!r})" for dtype, name in sorted(floats.items()))
        raise BundleError(f"{owner} expected weights of one dtype, got {got}.")
    for dtype, name in floats.items():
        if dtype not in DTYPES:
            raise BundleError(f"{owner} tensor {name!r}: expected one of {', '.join(DTYPES)}, got {dtype}.")
        return dtype
    return "float32"


def _check_finite(owner: str, names: Mapping[str, str], state: Mapping[str, Tensor]) -> None:
    for key, tensor in state.items():
        nans, infinities = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        if nans or infinities:
            raise BundleError(
                f"{owner} tensor {names[key]!r}: expected finite values, got {nans} NaN and {infinities} infinite of "
                f"{tensor.numel()}."
            )
