"""From a batch of inputs or tokens to what is kept of each sample: registers, class tokens, the mean of patches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from regplug.commands.rank.reading.network import BuiltNetwork
from regplug.commands.rank.reading.pictures import decode
from regplug.commands.rank.reading.source import PARTS, REGISTERS, Batch, Picture, Source, owner_of
from regplug.errors import SpecError
from regplug.nn.select import SelectRegisters
from regplug.registry.layout import TokenLayout

Parts = dict[str, Tensor]


def parts_of(
    source: Source, built: BuiltNetwork | None, layout: TokenLayout | None, start: int, size: int
) -> Iterator[Parts]:
    """What is kept of the samples from ``start`` on, a batch at a time.

    Args:
        source: The data.
        built: The backbone, where the data are images.
        layout: Where the registers are, where the data are images or tokens.
        start: The first sample.
        size: Samples that are read at a time.

    Raises:
        SpecError: An image, an input or a token cannot be read; the message names the sample.
    """
    row = start
    shape = None
    for batch in source.batches(start, size):
        parts = _of_batch(source, built, layout, batch)
        count = len(parts[REGISTERS])
        names = [one.owner for one in batch] if not isinstance(batch, Mapping) else None
        _check_finite(source, parts, row, names)
        shape = shape or parts[REGISTERS].shape[1:]
        if parts[REGISTERS].shape[1:] != shape:
            wanted, got = list(shape), list(parts[REGISTERS].shape[1:])
            raise SpecError(f"{owner_of(source.path)}: sample {row}: expected registers {wanted}, got {got}.")
        row += count
        yield parts


def _of_batch(source: Source, built: BuiltNetwork | None, layout: TokenLayout | None, batch: Batch) -> Parts:
    owner = owner_of(source.path)
    if isinstance(batch, Mapping):
        if source.content == REGISTERS:
            return _checked_registers(owner, dict(batch), layout)
        given = batch[source.content]
    else:
        given = _inputs_of(batch, built)
    if built is not None:
        given = built.tokens(given)
    if layout is None:  # _check_choice has refused it
        raise SpecError(f"{owner}: expected a layout, got none.")
    if given.ndim != 3 or given.shape[2] != layout.hidden_dim or given.shape[1] < layout.min_tokens:
        raise SpecError(
            f"{owner}: tokens: expected [n, T, {layout.hidden_dim}] with T >= {layout.min_tokens}, as the backbone has "
            f"them, got {['n', *given.shape[1:]]}.".replace("'", "")
        )
    parts = {REGISTERS: SelectRegisters(layout)(given)}
    for name in PARTS[1:]:
        if any(one.name == name for one in layout.groups):
            group: Tensor = SelectRegisters(layout.for_group(name, given.shape[1]))(given)
            if group.shape[1]:
                parts[name] = group.mean(1)
    return {name: part.float() for name, part in parts.items()}


def _checked_registers(owner: str, parts: Parts, layout: TokenLayout | None) -> Parts:
    found = parts[REGISTERS]
    if layout is not None and layout.num_registers is not None:
        wanted = (layout.num_registers, layout.hidden_dim)
        if found.ndim == 2 and found.shape[1] == wanted[0] * wanted[1]:  # a flat list in each row
            found = parts[REGISTERS] = found.view(-1, *wanted)
        if tuple(found.shape[1:]) != wanted:
            raise SpecError(f"{owner}: registers: expected [n, {wanted[0]}, {wanted[1]}], got {list(found.shape[1:])}.")
    if found.ndim != 3:
        raise SpecError(f"{owner}: registers: expected [n, R, D], got {found.ndim} dimensions.")
    return parts


def _inputs_of(batch: Sequence[Picture], built: BuiltNetwork | None) -> Tensor:
    if built is None or built.pipeline is None:
        raise SpecError("images: expected a backbone with preprocessing, got none.")
    inputs = [built.pipeline(decode(one), one.owner) for one in batch]
    other = next((number for number, one in enumerate(inputs) if one.shape != inputs[0].shape), None)
    if other is not None:
        raise SpecError(
            f"preprocessing of {batch[other].owner}: expected {list(inputs[0].shape)}, as before, "
            f"got {list(inputs[other].shape)}."
        )
    return torch.stack(inputs)


def _check_finite(source: Source, parts: Parts, row: int, names: Sequence[str] | None) -> None:
    for name, part in parts.items():
        finite = torch.isfinite(part).flatten(1).all(1)
        if not bool(finite.all()):
            wrong = int((~finite).nonzero()[0, 0])
            value = part[wrong][~torch.isfinite(part[wrong])][0].item()
            which = f"sample {row + wrong}" + ("" if names is None else f" ({names[wrong]})")
            raise SpecError(f"{owner_of(source.path)}: {which}: {name}: expected finite numbers, got {value}.")
