"""Takes trained readouts, and the FiLM generators that follow them, out of a whole network's checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regplug.bundle.describe import describe_module
from regplug.commands.import_checkpoint.checkpoint import Checkpoint, open_checkpoint, without_prefix
from regplug.commands.import_checkpoint.readout_search import (
    ImportRequest,
    choose_sites,
    find_known,
    find_own_sites,
    known_layout,
)
from regplug.commands.import_checkpoint.state_names import unwrapped
from regplug.errors import BundleError, SpecError
from regplug.format.weights import check_state, dtype_name, save_tensors, types_of
from regplug.nn.conditioner import Conditioner
from regplug.nn.pairing import pair
from regplug.registry.default import default_registry
from regplug.registry.dtypes import DTYPES, torch_dtype
from regplug.registry.entries import CheckpointSite
from regplug.registry.layout import TokenLayout
from regplug.registry.registry import Registry
from regplug.registry.spec import ReadoutSpec


@dataclass(frozen=True)
class Imported:
    """One trained readout, or conditioner, out of a checkpoint.

    Args:
        block: Its place in the network; empty if there is only one.
        spec: The spec that builds the readout.
        metadata: The metadata of its weights file.
        dtype: The dtype of its weights, ``float32``.
        state: Its weights.
        tensors: Their names, each with the name in the checkpoint.
        assumed: Options that neither names nor shapes show and that were not given, at their defaults.
    """

    block: str
    spec: ReadoutSpec
    metadata: Mapping[str, Any]
    dtype: str
    state: Mapping[str, Tensor]
    tensors: Mapping[str, str]
    assumed: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """The weights file, as ``regplug export --weights`` takes it."""
        return save_tensors(self.state, self.metadata)


@dataclass(frozen=True)
class Import:
    """What was taken out of a checkpoint, and what was left.

    Args:
        checkpoint: The checkpoint.
        prefix: The prefix before the network's own names.
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
    request: ImportRequest,
    *,
    registry: Registry | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Import:
    """Find trained readouts in a checkpoint, and check them against the modules that regplug builds; writes nothing.

    The backbone's plugin finds the readouts of its own networks. If it finds none, the readouts in regplug's own
    modules are taken, under any prefix.

    Args:
        path: A checkpoint of the whole network; see ``open_checkpoint``.
        request: What to take.
        registry: The registry for names; the installed plugins when None.
        progress: Called with a description of each step.

    Raises:
        SpecError: The request contradicts the checkpoint, or is incomplete.
        NameLookupError: There is no such backbone, block or strategy.
        BundleError: The file is not a checkpoint, has no readout that fits, or one that lacks a weight.
        PluginError: The backbone's plugin is broken.
    """
    registry = registry or default_registry()
    entry, known = known_layout(request, registry)
    progress("opening")
    checkpoint = open_checkpoint(path, request.state_key)
    if request.prefix is not None:
        checkpoint = without_prefix(checkpoint, request.prefix)
    progress("looking for readouts")
    prefix = ""
    sites: Sequence[CheckpointSite] = ()
    if entry is not None and entry.weights is not None:
        prefix, sites = find_known(entry, checkpoint)
    assumed: dict[str, Mapping[str, Any]] = {}
    if not sites:
        own = find_own_sites(entry, checkpoint, request, known, registry)
        sites = tuple(one.site for one in own)
        assumed = {one.site.where: one.assumed for one in own}
    extractor = _Extractor(checkpoint, prefix, known, request, assumed, registry)
    readouts = []
    for site in choose_sites(checkpoint, sites, request.block, request.every):
        progress(f"block {site.where}" if site.where else "reading")
        readouts.append(extractor.extract(site))
    taken = {name for one in readouts for name in one.tensors.values()}
    return Import(
        checkpoint,
        prefix,
        tuple(readouts),
        tuple(sorted(set(checkpoint.names.values()) - taken)),
        checkpoint.nbytes - sum(tensor.nbytes for one in readouts for tensor in one.state.values()),
    )


@dataclass(frozen=True)
class _Extractor:
    """Takes readouts out of one checkpoint."""

    checkpoint: Checkpoint
    prefix: str
    known: TokenLayout | None
    request: ImportRequest
    assumed: Mapping[str, Mapping[str, Any]]
    registry: Registry

    def extract(self, site: CheckpointSite) -> Imported:
        block = f": block {site.where}" if site.where else ""
        owner = f"checkpoint {self.checkpoint.path}{block}"
        spec = self._spec(owner, site)
        film = site.film is not None and not self.request.readout_only
        self._check_film(owner, site)
        layout = self._layout(owner, site, demanded=film)
        names = {**site.readout}
        if film:
            names = {f"readout.{key}": name for key, name in site.readout.items()}
            names |= {f"film.{key}": name for key, name in site.film_weights.items()}
        names = {key: self.prefix + name for key, name in names.items()}
        if site.where not in self.assumed:  # of regplug's own modules, each copy is a site, and one was chosen
            self._check_single(owner, names)
        state = {key: self.checkpoint.read(name) for key, name in sorted(names.items())}
        dtype = _common_dtype(owner, names, state)
        with torch.device("meta" if spec.measured else "cpu"):
            module = self._build(site, spec, layout if film else None).to(torch_dtype(dtype))
        check_state(owner, types_of(module.state_dict()), state)
        _check_finite(owner, names, state)
        metadata = describe_module(spec, module, layout, self.registry).as_dict()
        original = {key: self.checkpoint.names[name] for key, name in names.items()}
        return Imported(site.where, spec, metadata, dtype, state, original, self.assumed.get(site.where, {}))

    def _spec(self, owner: str, site: CheckpointSite) -> ReadoutSpec:
        found = self.registry.readout_entry(site.strategy).full_name
        if self.request.strategy is not None:
            asked = self.registry.readout_entry(self.request.strategy).full_name
            if asked != found:
                raise SpecError(f"{owner}: strategy: expected {found!r}, as names and shapes tell, got {asked!r}.")
        shown = json.loads(json.dumps(dict(site.options)))  # with lists for tuples, as in JSON
        for option, value in self.request.options.items():
            if option in shown and shown[option] != value:
                raise SpecError(
                    f"{owner}: option {option!r}: expected {shown[option]!r}, as the shapes tell, got {value!r}."
                )
        sizes = {"num_registers": site.num_registers, "hidden_dim": site.hidden_dim}
        if self.known is not None:
            for word, size in sizes.items():
                wanted = getattr(self.known, word)
                if size != wanted:
                    raise SpecError(f"{owner} {word}: expected {wanted}, as the model has, got {size} by the shapes.")
        clashes = sorted({"strategy", *sizes} & {*self.request.options})
        if clashes:
            raise SpecError(f"option {clashes[0]!r}: expected an option of the strategy, got one of the sizes.")
        return self.registry.resolve(found, **sizes, **{**site.options, **self.request.options})

    def _layout(self, owner: str, site: CheckpointSite, *, demanded: bool) -> TokenLayout | None:
        found = site.layout or self.known
        if self.request.layout:
            sizes = {"num_registers": site.num_registers, "hidden_dim": site.hidden_dim}
            # the caller may know more than names and shapes show: that an older network has its registers first, say
            found = TokenLayout.from_dict({**(found.as_dict() if found else sizes), **self.request.layout})
            if (found.num_registers, found.hidden_dim) != (site.num_registers, site.hidden_dim):
                raise SpecError(f"{owner}: layout: expected {sizes}, as the shapes tell, got {found}.")
        if found is None and demanded:
            raise SpecError(
                f"{owner}: layout: expected --layout start=N for the FiLM generator that was found, as the checkpoint "
                "does not tell it, got none; use --readout-only to leave the FiLM generator."
            )
        return found

    def _check_film(self, owner: str, site: CheckpointSite) -> None:
        """Refuse to leave out a requested FiLM generator silently."""
        request = self.request
        if request.readout_only or (request.film_generator is None and not request.film_options):
            return
        if site.film is None:
            raise BundleError(
                f"{owner}: expected the weights of a FiLM generator, as --film or --film-generator is given, got none; "
                "leave these options out to import the readout alone."
            )
        if request.film_generator is not None and (
            self.registry.film_entry(request.film_generator) != self.registry.film_entry(site.film)
        ):
            raise SpecError(
                f"{owner}: --film-generator: expected {site.film!r}, as names and shapes tell, got "
                f"{request.film_generator!r}."
            )

    def _check_single(self, owner: str, names: Mapping[str, str]) -> None:
        """Refuse a checkpoint that has a weight twice, under two wrappers: either could be meant."""
        wanted = {unwrapped(name): name for name in names.values()}
        for name in self.checkpoint.names:
            twin = wanted.get(unwrapped(name), name)
            if twin != name:
                first, second = sorted(self.checkpoint.names[one] for one in (name, twin))
                raise BundleError(f"{owner}: expected one tensor {unwrapped(name)!r}, got {first!r} and {second!r}.")

    def _build(self, site: CheckpointSite, spec: ReadoutSpec, layout: TokenLayout | None) -> nn.Module:
        readout = spec.build()
        if site.film is None or layout is None:
            return readout
        family = self.registry.film_entry(site.film)
        for option, value in self.request.film_options.items():
            if site.film_options.get(option, value) != value:
                shown = site.film_options[option]
                raise SpecError(f"--film: {option}: expected {shown!r}, as the shapes tell, got {value!r}.")
        options = {**site.film_options, **self.request.film_options}
        film = pair(spec, family.build, width=family.width, registry=self.registry, **options)
        return Conditioner(layout, readout, film, family.form, family.order, self.registry)


def _common_dtype(owner: str, names: Mapping[str, str], state: Mapping[str, Tensor]) -> str:
    """The one dtype of all weights."""
    floats = {dtype_name(tensor): names[key] for key, tensor in state.items() if tensor.is_floating_point()}
    if len(floats) > 1:
        got = " and ".join(f"{dtype} ({name!r})" for dtype, name in sorted(floats.items()))
        raise BundleError(f"{owner}: expected weights of one dtype, got {got}.")
    for dtype, name in floats.items():
        if dtype not in DTYPES:
            raise BundleError(f"{owner}: tensor {name!r}: expected one of {', '.join(DTYPES)}, got {dtype}.")
        return dtype
    return "float32"


def _check_finite(owner: str, names: Mapping[str, str], state: Mapping[str, Tensor]) -> None:
    for key, tensor in state.items():
        nans, infinities = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        if nans or infinities:
            raise BundleError(
                f"{owner}: tensor {names[key]!r}: expected finite values, got {nans} NaN and {infinities} infinite of "
                f"{tensor.numel()}."
            )
