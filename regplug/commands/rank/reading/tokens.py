"""Reads the tokens of all samples once: with a backbone, or from a file of tokens; kept in the cache, resumable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regplug.commands.rank.reading.data import open_source
from regplug.commands.rank.reading.network import Network, choose_network
from regplug.commands.rank.reading.parts import Parts, parts_of
from regplug.commands.rank.reading.samples import Samples
from regplug.commands.rank.reading.source import IMAGES, PICTURES, REGISTERS, TOKENS, Source, owner_of
from regplug.commands.rank.reading.targets import group_numbers, make_targets
from regplug.commands.rank.reading.token_cache import TokenFolder, key_of, tokens_folder
from regplug.commands.rank.reading.token_file import count_duplicates, count_samples, mapped
from regplug.errors import SpecError
from regplug.registry.layout import TokenLayout
from regplug.registry.registry import Registry

SHARD = 128  # samples: what a killed process reads again is at most this


def read_samples(
    backbone: str | nn.Module | None,
    data: str | os.PathLike[str],
    *,
    labels: str | None = None,
    groups: str | None = None,
    task: str | None = None,
    folds: int = 5,
    model_options: Mapping[str, Any] | None = None,
    weights: str | os.PathLike[str] | None = None,
    preprocess: str | Callable[..., Any] | None = None,
    normalized: bool | None = None,
    layout: TokenLayout | None = None,
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    registry: Registry | None = None,
    progress: Callable[[str], None] | None = None,
) -> Samples:
    """The registers, class tokens and mean patches of all samples, and what is to be predicted of them.

    Labels are checked before any token is read. The tokens are kept in the cache; a run that was interrupted or killed
    goes on where it ended. ``facts`` has: ``data``, ``kind``, ``content``, ``samples``, ``digest``, ``backbone``,
    ``model``, ``model_options``, ``weights`` (``"random"``, or a sha256), ``weights_file``, ``preprocessing`` (text or
    None), ``normalized``, ``num_registers``, ``hidden_dim``, ``references``, ``task``, ``duplicates``, ``cache_hit``,
    ``resumed_from`` (samples that an earlier run had read), ``seconds`` (of reading), ``file``; of a folder of images
    ``empty_folders`` and ``unlabelled_images`` (``count`` and the ``first`` names) and ``other_files``, which were left
    out.

    Args:
        backbone: ``"NAME[:MODEL]"``, or a model that a plugin knows; None for a file of tokens.
        data: A folder of images, or an ``.npz``, ``.safetensors`` or Parquet file; see ``open_source``.
        labels: The column or array with the labels.
        groups: The column or array with the groups: samples of one stay in one fold.
        task: ``"classification"`` or ``"regression"``; None for what the labels look like.
        folds: How many folds the samples will be split into.
        model_options: Options for building the model.
        weights: A file with the whole model's weights.
        preprocess: ``"MODULE:FUNCTION"`` or a function, from a Pillow image to a tensor ``[C, H, W]``; None for the
            backbone's own.
        normalized: Whether the final norm is applied; None for as the model does.
        layout: Where the registers are in a file of tokens, if no backbone says it.
        cache: The cache folder; None for regplug's own.
        batch_size: Inputs that the backbone reads at a time.
        registry: Where backbones are looked up; the installed plugins when None.
        progress: Called with a line about each step.

    Raises:
        SpecError: The data, the labels or the options cannot be used.
        RegplugError: The backbone cannot be built or has no registers.
        ExportError: The cache cannot be written; what was read is kept.
    """
    say = progress or (lambda step: None)
    say("labels")
    source = open_source(data, labels, groups)
    owner = owner_of(source.path)
    grouped = None if source.groups is None else group_numbers(owner, source.groups, len(source))
    targets = make_targets(owner, source.labels, task, folds, source.names, grouped)
    network = None
    if backbone is None and (weights is not None or model_options or preprocess is not None):
        raise SpecError(f"{owner}: expected a backbone with its options, weights or preprocessing, got none.")
    if backbone is not None:
        network = choose_network(
            backbone,
            model_options=model_options,
            weights=weights,
            normalized=normalized,
            preprocess=preprocess,
            registry=registry,
        )
    _check_choice(source, network, layout, preprocess)
    place = layout
    if network is not None and source.content in (TOKENS, REGISTERS):
        place = network.layout()
    say("digest of the data")
    facts = {**_facts_of(source), **(network.facts() if network else _NO_NETWORK)}
    key = key_of(_determined_by(source, network, place, facts["digest"]))
    folder = TokenFolder(tokens_folder(cache) / key)
    about, file = _kept(folder)
    if file is None:
        with folder.locked(say):
            about, file, more = _read_all(folder, source, network, place, facts, batch_size, say)
    else:
        more = {"cache_hit": True, "resumed_from": 0}
    parts = mapped(file)
    # of this run where the same data were moved or named otherwise
    facts = {**about, **facts, **source.facts, **more, "task": targets.task, "file": str(file)}
    references = {name: part for name, part in parts.items() if name != REGISTERS}
    return Samples(parts[REGISTERS], targets.values, targets.classes, references, grouped, facts)


_NO_NETWORK: dict[str, Any] = {
    "backbone": None,
    "model": None,
    "model_options": {},
    "weights": None,
    "weights_file": None,
}


def _check_choice(source: Source, network: Network | None, layout: TokenLayout | None, preprocess: Any) -> None:
    owner = owner_of(source.path)
    if source.content in (PICTURES, IMAGES) and network is None:
        raise SpecError(f"{owner}: expected a backbone that reads these images, got none.")
    if source.content == TOKENS and network is None and layout is None:
        raise SpecError(f"{owner}: expected a backbone or a layout that says where the registers are, got none.")
    if source.content != PICTURES and preprocess is not None:
        raise SpecError(f"{owner}: --preprocess: expected none, because there are no image files, got one.")
    if source.content == PICTURES and network is not None:
        network.check_pictures()


def _facts_of(source: Source) -> dict[str, Any]:
    return {
        "data": str(source.path),
        "kind": source.kind,
        "content": source.content,
        "samples": len(source),
        "digest": source.digest(),
    }


def _determined_by(source: Source, network: Network | None, layout: TokenLayout | None, digest: str) -> dict[str, Any]:
    is_read = source.content in (PICTURES, IMAGES)  # by the backbone; its weights say nothing about a file of tokens
    return {
        "kind": source.kind,
        "content": source.content,
        "data": digest,
        "network": network.determined_by(source.content == PICTURES) if network and is_read else None,
        "layout": None if layout is None or is_read else repr(layout),
    }


def _kept(folder: TokenFolder) -> tuple[dict[str, Any], Path | None]:
    about = folder.about()
    file = None if about is None or "num_registers" not in about else folder.whole()
    return about or {}, file


def _read_all(
    folder: TokenFolder,
    source: Source,
    network: Network | None,
    layout: TokenLayout | None,
    facts: Mapping[str, Any],
    batch_size: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], Path, dict[str, Any]]:
    """Read what is missing, under the folder's lock; gives what the tokens are of, their file, and facts of the run."""
    about, file = _kept(folder)
    if file is not None:  # another process read them while this one waited
        return about, file, {"cache_hit": True, "resumed_from": 0}
    begin = time.monotonic()
    whole = folder.whole()
    done = len(source)
    if whole is None:
        about, whole, done = _read_missing(folder, source, network, layout, {**about, **facts}, batch_size, say)
    parts = mapped(whole)
    about |= {
        "num_registers": parts[REGISTERS].shape[1],
        "hidden_dim": parts[REGISTERS].shape[2],
        "references": sorted(set(parts) - {REGISTERS}),
        "duplicates": count_duplicates(parts[REGISTERS]),
        "seconds": round(time.monotonic() - begin, 3),
    }
    folder.write_about(about)
    return about, whole, {"cache_hit": False, "resumed_from": done}


def _read_missing(
    folder: TokenFolder,
    source: Source,
    network: Network | None,
    layout: TokenLayout | None,
    about: dict[str, Any],
    batch_size: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], Path, int]:
    shards = folder.shards()
    done = sum(map(count_samples, shards))
    built = None
    if source.content in (PICTURES, IMAGES) and network is not None and done < len(source):
        say("building the backbone")
        built = network.build(source.content == PICTURES)
        layout = built.layout
        about["preprocessing"] = None if built.pipeline is None else built.pipeline.text
        about["normalized"] = layout.normalized
    about = {"preprocessing": None, "normalized": None, **about}
    folder.write_about(about)
    for shard in _in_shards(parts_of(source, built, layout, done, batch_size), done, len(source), say):
        shards.append(folder.add_shard(len(shards), shard))
    say("joining")
    return about, folder.join(shards), done


def _in_shards(batches: Iterator[Parts], done: int, count: int, say: Callable[[str], None]) -> Iterator[Parts]:
    """The parts in pieces of ``SHARD`` samples; the last one may be shorter."""
    held: list[Parts] = []
    number = 0
    for batch in batches:
        held.append(batch)
        number += len(batch[REGISTERS])
        done += len(batch[REGISTERS])
        say(f"{done} of {count} samples")
        while number >= SHARD:
            joined = _joined(held)
            yield {name: part[:SHARD] for name, part in joined.items()}
            held = [{name: part[SHARD:] for name, part in joined.items()}]
            number -= SHARD
    if number:
        yield _joined(held)


def _joined(held: list[Parts]) -> Parts:
    return {name: torch.cat([one[name] for one in held]) for name in held[0]}
