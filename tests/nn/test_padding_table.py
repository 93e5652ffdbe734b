"""``make matrix``'s table of padding: batches are what their names say, and a wrong readout is above the tolerance."""

from __future__ import annotations

import math

import padding
import pytest
import torch
from support.readouts import trained
from torch import Tensor

import regplug


def readout(strategy: str) -> torch.nn.Module:
    return trained(regplug.resolve(strategy, num_registers=None, hidden_dim=24, **padding.OPTIONS[strategy])).eval()


@pytest.mark.parametrize("strategy", padding.OPTIONS)
def test_every_strategy_is_in_the_table_and_within_the_tolerance_in_eager_mode(strategy: str) -> None:
    found = padding.errors(readout(strategy), readout(strategy))
    assert len(found) == len(padding.SIZES) * len(padding.PATTERNS)
    assert max(found.values()) <= padding.TOLERANCE


def test_the_patterns_are_what_their_names_say() -> None:
    for batch, count in padding.SIZES:
        masks = {pattern: padding.mask_of(batch, count, pattern) for pattern in padding.PATTERNS}
        assert all(mask.shape == (batch, count) and mask.any(1).all() for mask in masks.values())
        assert masks["none"].all()
        assert (masks["right"].int().diff(dim=1) <= 0).all()
        assert (masks["left"].int().diff(dim=1) >= 0).all()
    assert len({int(length) for length in padding.mask_of(5, 33, "right").sum(1)}) > 1
    assert (padding.mask_of(5, 33, "scattered").int().diff(dim=1).abs().sum(1) > 2).any()


def test_padding_holds_nan_and_tokens_that_count_do_not() -> None:
    for _, tokens, mask in padding.cases():
        assert tokens[mask].isfinite().all()
        assert tokens[~mask].isnan().all()


def first(tokens: Tensor, mask: Tensor) -> Tensor:
    return tokens[:, 0].nan_to_num()


def of_the_length(tokens: Tensor, mask: Tensor) -> Tensor:
    return tokens.nan_to_num().mean(1)


def times_zero(tokens: Tensor, mask: Tensor) -> Tensor:
    return (tokens * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)


@pytest.mark.parametrize("wrong", [first, of_the_length, times_zero])
def test_a_wrong_readout_is_above_the_tolerance_where_there_is_padding(wrong: padding.Run) -> None:
    found = padding.errors(wrong, readout("regplug-zoo:first-token" if wrong is first else "regplug:mean"))
    assert all(found[name] <= padding.TOLERANCE for name, _, mask in padding.cases() if mask.all())
    assert not found["B=5 N=33 left"] <= padding.TOLERANCE
    assert math.isnan(found["B=5 N=33 left"]) == (wrong is times_zero)
