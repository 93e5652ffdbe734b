"""Which tokens a mask may leave out: the rules of a bundle's mask, checked on every call and used to draw masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regplug.errors import ShapeError
from regplug.format.manifest import Manifest, PartRecord
from regplug.registry.layout import TokenLayout
from regplug.registry.readout_inputs import MASK


@dataclass(frozen=True)
class MaskRules:
    """The groups of tokens that a module reads, each with or without a mask.

    Args:
        layout: Where a conditioner's registers are in its tokens; None if the module reads all of them.
        parts: The parts of a join, whose tokens are among those; None if there is one group, which takes the mask.
    """

    layout: TokenLayout | None
    parts: Sequence[PartRecord] | None

    @classmethod
    def of(cls, manifest: Manifest) -> MaskRules | None:
        """The rules of a bundle; None without a mask."""
        if not any(one.name == MASK for one in manifest.more_inputs):
            return None
        return cls(manifest.token_layout if manifest.holds == "conditioner" else None, manifest.parts)

    def check(self, owner: str, mask: Tensor) -> None:
        """Refuse a mask that leaves a sample without tokens to read, or a token that a part reads in any case.

        Raises:
            ShapeError: Names the first such sample, from 0.
        """
        for name, tokens, takes_mask in self._groups(self._read(mask)):
            good = tokens.any(1) if takes_mask else tokens.all(1)
            if bool(good.all()):
                continue
            sample = int((~good).nonzero()[0])
            if takes_mask:
                of = f" of {name!r}" if name else ""
                raise ShapeError(
                    f"{owner}: mask: expected a token{of} that counts in every sample, got none in sample {sample}."
                )
            raise ShapeError(
                f"{owner}: mask: expected every token of {name!r} to count, which takes no mask, got padding in sample "
                f"{sample}."
            )

    def draw(self, batch: int, num_tokens: int, first: int, generator: torch.Generator) -> Tensor:
        """A mask that fulfils the rules, padded on the right, on the left, or anywhere, in turn.

        Args:
            batch: B.
            num_tokens: T.
            first: The pattern of the first sample.
            generator: What tokens are left out.
        """
        mask = torch.ones(batch, num_tokens, dtype=torch.bool)
        read = self._read(mask)
        groups = list(self._groups(read))
        for _, tokens, takes_mask in groups:
            for row in range(batch if takes_mask else 0):
                tokens[row] = _pattern(first + row, tokens.shape[1], generator)
        for _, tokens, takes_mask in groups:  # groups may share tokens
            if takes_mask:
                tokens[:, 0] |= ~tokens.any(1)
            else:
                tokens.fill_(True)
        if self.layout is not None and self.layout.indices is not None:  # then `read` is a copy
            mask[:, list(self.layout.indices)] = read
        return mask

    def _read(self, mask: Tensor) -> Tensor:
        """The mask of the tokens that the readout gets."""
        layout = self.layout
        if layout is None:
            return mask
        if layout.start is None:
            return mask[:, list(layout.indices or ())]
        start = layout.start if layout.start >= 0 else mask.shape[1] + layout.start
        return mask[:, start:] if layout.num_registers is None else mask[:, start : start + layout.num_registers]

    def _groups(self, mask: Tensor) -> Iterator[tuple[str, Tensor, bool]]:
        """Name, mask and whether it takes one, of each group; a view of ``mask``."""
        if self.parts is None:
            yield "", mask, True
        for part in self.parts or ():
            if part.tokens is not None:
                yield part.name, mask[:, slice(*part.tokens)], part.takes_mask


def _pattern(kind: int, length: int, generator: torch.Generator) -> Tensor:
    """A row of a mask: all, padded on the right, padded on the left, or any tokens."""
    kept = 1 + int(torch.randint(max(length - 1, 1), (), generator=generator))
    row = torch.arange(length)
    if kind % 4 == 1:
        return row < kept
    if kind % 4 == 2:
        return row >= length - kept
    if kind % 4 == 3:
        return torch.randperm(length, generator=generator) < kept
    return row >= 0
