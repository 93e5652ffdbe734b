"""Upstream's code as the oracle: the same weights in, the same numbers out.

timm's code runs as installed. Set Transformer's, efficient-probing's and ABMIL's cannot be installed: what they publish
is written again below, with other operations in another order.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from support.readouts import moved
from timm.layers.other_pool import SimPool1d
from timm.layers.pool1d import global_pool_nlc
from timm.models.cait import ClassAttn
from torch import Tensor, nn
from torch.nn import functional as F

import regplug
from regplug_zoo.attention import RegisterABMIL, RegisterClassAttention, RegisterSimPool
from regplug_zoo.moments import RegisterAvgMax, RegisterMax
from regplug_zoo.queries import RegisterEfficientProbing, RegisterPMA

R, D = 5, 24
every_batch = pytest.mark.parametrize("batch", [1, 2, 7])


def trained(readout: nn.Module) -> nn.Module:
    """The readout in float64, its parameters no longer the initial ones."""
    torch.manual_seed(0)
    return moved(readout.double(), 0.3)


def registers(batch: int = 3) -> Tensor:
    return torch.randn(batch, R, D, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def renamed(readout: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """The readout's weights under upstream's names; a prefix not listed keeps its own."""
    found = {}
    for name, weight in readout.state_dict().items():
        head, dot, tail = name.partition(".")
        found[names.get(head, head) + dot + tail] = weight
    return found


def test_the_comparison_notices_a_small_difference() -> None:
    close(registers() * (1 + 1e-14), registers())
    with pytest.raises(AssertionError):
        close(registers() * (1 + 1e-9), registers())


# ---- timm


@pytest.mark.parametrize(("readout", "word"), [(RegisterMax, "max"), (RegisterAvgMax, "avgmax")])
def test_maxima_answer_as_the_pooling_of_timm(readout: type[nn.Module], word: str) -> None:
    assert torch.equal(readout(R, D)(registers()), global_pool_nlc(registers(), word, num_prefix_tokens=0))


@every_batch
@pytest.mark.parametrize("heads", [1, 3, 8])
def test_class_attention_answers_as_that_of_timm(batch: int, heads: int) -> None:
    ours = trained(RegisterClassAttention(R, D, heads))
    theirs = ClassAttn(D, num_heads=heads).double()
    weights = ours.state_dict()
    token = weights.pop("cls_token")
    theirs.load_state_dict(weights, strict=True)
    found = []
    for run in (ours, lambda given: theirs(torch.cat([token.expand(batch, -1, -1), given], dim=1)).squeeze(1)):
        given = registers(batch).requires_grad_()
        answer = run(given)
        answer.square().sum().backward()
        found.append([answer.detach(), given.grad])
    close(found[0][0], found[1][0])
    close(found[0][1], found[1][1])
    with torch.no_grad():
        close(theirs.k.weight.grad, ours.k.weight.grad)
        token += 1e-3
    with pytest.raises(AssertionError):
        close(theirs(torch.cat([token.expand(batch, -1, -1), registers(batch)], dim=1)).squeeze(1), found[0][0])


@every_batch
def test_simpool_answers_as_that_of_timm_with_the_published_eps(batch: int) -> None:
    ours = trained(RegisterSimPool(R, D))
    weights = renamed(ours, {"norm_patches": "norm", "wq": "q", "wk": "k"})
    answers = []
    for eps in (1e-6, 1e-5):
        theirs = SimPool1d(D, norm_layer=functools.partial(nn.LayerNorm, eps=eps)).double()
        theirs.load_state_dict(weights, strict=True)
        answers.append(theirs(registers(batch)))
    close(ours(registers(batch)), answers[0])
    with pytest.raises(AssertionError):
        close(ours(registers(batch)), answers[1])


# ---- what is published as code, but not as a package


def published_pma(weights: dict[str, Tensor], given: Tensor, heads: int, key_bias: Tensor) -> Tensor:
    """Set Transformer's PMA as its code has it: heads as slices of the channels, one after another."""

    def norm(name: str, x: Tensor) -> Tensor:
        if f"{name}.weight" not in weights:
            return x
        return F.layer_norm(x, (D,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    queries = weights["seeds"][0] @ weights["fc_q.weight"].T + weights["fc_q.bias"]
    answers = []
    for sample in given:
        keys = sample @ weights["fc_k.weight"].T + key_bias
        values = sample @ weights["fc_v.weight"].T + weights["fc_v.bias"]
        parts = []
        for q, k, v in zip(*(x.tensor_split(heads, dim=1) for x in (queries, keys, values)), strict=True):
            parts.append(q + torch.softmax(q @ k.T / math.sqrt(D), dim=1) @ v)
        attended = norm("ln0", torch.cat(parts, dim=1))
        fed = (attended @ weights["fc_o.weight"].T + weights["fc_o.bias"]).clamp(min=0)
        answers.append(norm("ln1", attended + fed).flatten())
    return torch.stack(answers)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(("seeds", "heads"), [(1, 1), (1, 4), (3, 2)])
def test_pma_equals_the_published_code_for_every_key_bias(seeds: int, heads: int, layer_norm: bool) -> None:
    ours = trained(RegisterPMA(R, D, seeds, heads, layer_norm))
    answers = [published_pma(ours.state_dict(), registers(), heads, bias * torch.ones(D).double()) for bias in (0, 0.7)]
    for answer in answers:
        close(ours(registers()), answer)
    with pytest.raises(AssertionError):
        close(ours(registers() * 1.001), answers[0])


def test_the_seeds_of_pma_start_as_published() -> None:
    torch.manual_seed(5)
    seeds = RegisterPMA(R, D, num_seeds=3).seeds
    torch.manual_seed(5)
    assert torch.equal(seeds, nn.init.xavier_uniform_(torch.empty(1, 3, D)))


def published_probing(weights: dict[str, Tensor], given: Tensor, d_out: int) -> Tensor:
    """EP with one head: M queries over keys that nothing projects, each with its slice of the values."""
    queries = weights["cls_token"].expand(len(given), -1, -1) * D**-0.5
    attention = (queries @ given.transpose(1, 2)).softmax(dim=2)  # [B, M, R]
    values = (given @ weights["v.weight"].T).unflatten(2, (queries.shape[1], -1))  # [B, R, M, D / (M d_out)]
    answer = torch.einsum("bmr,brmw->bmw", attention, values)
    return answer.reshape(len(given), D // d_out)


@every_batch
@pytest.mark.parametrize(("queries", "d_out"), [(1, 1), (4, 1), (4, 3), (2, 12), (24, 1)])
def test_efficient_probing_answers_as_published(batch: int, queries: int, d_out: int) -> None:
    ours = trained(RegisterEfficientProbing(R, D, queries, d_out))
    expected = published_probing(ours.state_dict(), registers(batch), d_out)
    assert expected.shape == (batch, ours.out_dim)
    close(ours(registers(batch)), expected)
    with pytest.raises(AssertionError):
        close(ours(registers(batch)), published_probing(ours.state_dict(), registers(batch) * 1.001, d_out))


@every_batch
def test_abmil_equals_the_published_attention_for_every_last_bias(batch: int) -> None:
    ours = trained(RegisterABMIL(R, D, attention_dim=7))
    theirs = nn.Sequential(nn.Linear(D, 7), nn.Tanh(), nn.Linear(7, 1)).double()
    with torch.no_grad():
        theirs[0].weight.copy_(ours.value.weight)
        theirs[0].bias.zero_()
        theirs[2].weight.copy_(ours.score.weight)
    bags = [torch.softmax(theirs(bag).T, dim=1) @ bag for bag in registers(batch)]
    close(ours(registers(batch)), torch.cat(bags))
    with torch.no_grad():
        theirs[0].bias += 1e-3
    with pytest.raises(AssertionError):
        close(
            ours(registers(batch)), torch.cat([torch.softmax(theirs(bag).T, dim=1) @ bag for bag in registers(batch)])
        )


def test_probing_with_one_query_is_one_head_of_attention() -> None:
    ours = trained(regplug.create("efficient-probing", num_registers=R, hidden_dim=D, num_queries=1))
    query = ours.cls_token.expand(3, -1, -1)
    close(ours(registers()), F.scaled_dot_product_attention(query, registers(), ours.v(registers())).squeeze(1))
