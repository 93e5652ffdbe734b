"""Draws the inputs of golden cases from a fixed seed: tokens, a mask with broken padding, vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regplug.bundle.io_signature import IOSignature, sizes_of
from regplug.format.manifest import TensorSpec
from regplug.registry.dtypes import torch_dtype
from regplug.registry.readout_inputs import MASK

BROKEN = (math.nan, math.inf)  # what padding holds: a program that reads it does not get away with it


def draw_inputs(
    signature: IOSignature, case: int, batch: int, length: int, around: int, generator: torch.Generator
) -> list[Tensor]:
    """The stored inputs of one case.

    Args:
        signature: What the module takes.
        case: The case's number, which chooses the mask's pattern.
        batch: B.
        length: The first input's second size.
        around: Tokens stored before and after the slice; 0 if the input is stored as it is used.
        generator: Where the numbers come from.
    """
    given = _normal(signature.input, batch, length + 2 * around, generator)
    drawn = [given]
    for one in signature.more_inputs:
        if one.name != MASK or signature.mask_rules is None:
            drawn.append(_normal(one, batch, length, generator))
            continue
        mask = torch.zeros(batch, length + 2 * around, dtype=torch.bool)
        used = slice(around, around + length)
        mask[:, used] = signature.mask_rules.draw(batch, length, case + (batch == 1), generator)
        for row in range(batch):
            given[row, used][~mask[row, used]] = BROKEN[row % 2]
        drawn.append(mask)
    return drawn


def _normal(spec: TensorSpec, batch: int, length: int, generator: torch.Generator) -> Tensor:
    sizes = sizes_of(spec, batch, length)
    return torch.randn(sizes, generator=generator, dtype=torch.float64, device="cpu").to(torch_dtype(spec.dtype))
