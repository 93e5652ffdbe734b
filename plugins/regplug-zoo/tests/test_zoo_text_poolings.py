"""The poolings of sentence-transformers as the oracle of strategies with a mask, for padding on both sides."""

from __future__ import annotations

import math

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor

import regplug

D = 24
LENGTHS = (4, 1, 7, 5)  # tokens that count, of each sample
# sentence-transformers' word -> the strategy, and its largest error in float64, relative to the largest number
MODES = {
    "cls": ("first-token", 0.0),
    "lasttoken": ("last-token", 0.0),
    "max": ("max", 0.0),
    "mean": ("mean", 0.0),
    "mean_sqrt_len_tokens": ("mean-sqrt-len", 0.0),
    "weightedmean": ("weighted-mean", 1e-15),
}
every_mode = pytest.mark.parametrize("mode", MODES)


def padded(side: str, value: float = 3.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Samples of several lengths in one batch, the value where the mask is false."""
    places = torch.arange(max(LENGTHS) + 2)
    counts = torch.tensor(LENGTHS)[:, None]
    mask = places < counts if side == "right" else places >= len(places) - counts
    tokens = torch.full((*mask.shape, D), value, dtype=torch.float64)
    tokens[mask] = torch.randn(sum(LENGTHS), D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return tokens.to(dtype), mask


def published(mode: str, tokens: Tensor, mask: Tensor) -> Tensor:
    """What sentence-transformers gives."""
    given = {"token_embeddings": tokens, "attention_mask": mask.long()}
    answer: Tensor = Pooling(D, pooling_mode=mode)(given)["sentence_embedding"]
    return answer


def ours(mode: str, tokens: Tensor, mask: Tensor) -> Tensor:
    answer: Tensor = regplug.create(MODES[mode][0], num_registers=None, hidden_dim=D)(tokens, mask)
    return answer


def error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@every_mode
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pooling_of_sentence_transformers_is_a_strategy(mode: str, side: str) -> None:
    tokens, mask = padded(side)
    expected = published(mode, tokens, mask)
    assert error(ours(mode, tokens, mask), expected) <= MODES[mode][1]
    assert error(ours(mode, tokens, mask), ours(mode, *padded("right", math.nan))) <= 1e-15
    for other in set(MODES) - {mode}:
        assert error(ours(other, tokens, mask), expected) > 0.01


@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_narrower_dtypes_the_two_differ_by_rounding(mode: str, dtype: torch.dtype) -> None:
    tokens, mask = padded("left", dtype=dtype)
    answer = ours(mode, tokens, mask)
    assert answer.dtype == dtype
    assert error(answer.double(), published(mode, tokens, mask).double()) <= torch.finfo(dtype).eps


@every_mode
def test_gradients_are_those_of_sentence_transformers(mode: str) -> None:
    found = []
    for run in (ours, published):
        tokens, mask = padded("left")
        run(mode, tokens.requires_grad_(), mask).square().sum().backward()
        assert tokens.grad is not None
        found.append(tokens.grad)
    assert error(*found) <= 1e-15


def test_a_mask_with_gaps_weights_by_rank_as_the_tokens_alone_and_not_by_distance_as_sentence_transformers() -> None:
    tokens = torch.tensor([[[2.0], [100.0], [5.0]]], dtype=torch.float64).expand(-1, -1, D)
    mask = torch.tensor([[True, False, True]])
    assert ours("weightedmean", tokens, mask)[0, 0].item() == pytest.approx((2 + 2 * 5) / 3)
    assert published("weightedmean", tokens, mask)[0, 0].item() == pytest.approx((2 + 3 * 5) / 4)


@pytest.mark.parametrize("strategy", ["first-token", "last-token"])
def test_the_token_that_is_read_alone_gets_a_gradient(strategy: str) -> None:
    tokens, mask = padded("left", math.inf)
    regplug.create(strategy, num_registers=None, hidden_dim=D)(tokens.requires_grad_(), mask).sum().backward()
    assert tokens.grad is not None
    read = tokens.grad.sum(2).nonzero().tolist()
    first = [9 - count for count in LENGTHS]
    assert read == [[row, place if strategy == "first-token" else 8] for row, place in enumerate(first)]


@pytest.mark.parametrize("strategy", ["mean-sqrt-len", "weighted-mean"])
def test_autocast_does_not_make_an_average_coarser(strategy):
    readout = regplug.create(strategy, num_registers=None, hidden_dim=5)
    torch.manual_seed(0)
    tokens, mask = torch.randn(2, 50, 5), torch.arange(50).expand(2, 50) < 40
    with torch.autocast("cpu", torch.bfloat16):
        found = [readout(tokens), readout(tokens, mask)]
    for got, wanted in zip(found, [readout(tokens), readout(tokens, mask)], strict=True):
        torch.testing.assert_close(got, wanted)
