"""What a readout costs compared with the backbone that it reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from regplug.commands.bench.report import Spread
from regplug.commands.bench.timing import interleaved, spread_of
from regplug.errors import SpecError
from regplug.nn.attached import AttachedConditioner, AttachedReadout


@dataclass(frozen=True)
class ConditioningCost:
    """Microseconds of one call, eager and in inference mode, measured in turns.

    Args:
        whole: From the model's inputs to the conditioning vector or the FiLM pairs.
        conditioning: The part of that after the tokens: register selection, readout, FiLM generator.
        share: The share of ``conditioning`` in ``whole``, between 0 and 1: the ratio of the medians.
    """

    whole: Spread
    conditioning: Spread
    share: float


def conditioning_cost(
    attached: AttachedReadout | AttachedConditioner, inputs: Any, *, rounds: int | None = None
) -> ConditioningCost:
    """Time the conditioning as a part of the whole, on these inputs and with torch's current number of threads.

    Args:
        attached: A module that ``attach`` gave; the caller sets its mode (``eval()``).
        inputs: Its inputs, images ``[B, C, H, W]`` for most backbones.
        rounds: Pairs of blocks to measure; by default as many as a third of a second allows, at least five.

    Raises:
        SpecError: ``attached`` does not come from ``attach``.
    """
    steps: list[nn.Module]
    if isinstance(attached, AttachedConditioner):
        steps = [attached.conditioner]
    elif isinstance(attached, AttachedReadout):
        steps = [attached.select, attached.readout]
    else:
        raise SpecError(f"attached: expected what regplug.attach gave, got {type(attached).__name__}.")
    with torch.inference_mode():
        tokens = attached.tokens(inputs)
        series = interleaved([partial(attached, inputs), partial(nn.Sequential(*steps), tokens)], tokens.device, rounds)
    whole, conditioning = (spread_of([seconds * 1e6 for seconds in one]) for one in series)
    share = conditioning.median / whole.median if whole.median else math.nan
    return ConditioningCost(whole, conditioning, share)
