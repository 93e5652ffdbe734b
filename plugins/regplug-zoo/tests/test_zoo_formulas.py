"""Each readout against its formula in plain Python numbers, and what the formulas promise at their edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from support.readouts import moved
from torch import Tensor, nn

import regplug
from regplug_zoo.concatenations import PerRegisterCompressConcat
from regplug_zoo.moments import RegisterMax, RegisterMeanStd, RegisterSum
from regplug_zoo.weighted import RegisterChannelPooling, RegisterGeM

R, D = 5, 6
Sample = list[list[float]]  # R registers of D numbers
OPTIONS: dict[str, dict[str, int]] = {
    "per-register-compress-concat": {"compressed_dim": 2},
    "concat-linear": {"out_features": 4},
    "abmil": {"attention_dim": 3},
    "sinusoidal": {"dim": 4, "max_period": 7},
}


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def softmax(scores: list[float]) -> list[float]:
    raised = [math.exp(score) for score in scores]
    return [one / sum(raised) for one in raised]


def channels(sample: Sample) -> list[list[float]]:
    return [list(channel) for channel in zip(*sample, strict=True)]


def plain_sum(readout: nn.Module, sample: Sample) -> list[float]:
    return [sum(channel) for channel in channels(sample)]


def plain_max(readout: nn.Module, sample: Sample) -> list[float]:
    return [max(channel) for channel in channels(sample)]


def plain_avgmax(readout: nn.Module, sample: Sample) -> list[float]:
    return [(sum(channel) / R + max(channel)) / 2 for channel in channels(sample)]


def plain_mean_std(readout: nn.Module, sample: Sample) -> list[float]:
    means = [sum(channel) / R for channel in channels(sample)]
    squares = [sum((x - mean) ** 2 for x in channel) / R for channel, mean in zip(channels(sample), means, strict=True)]
    return [*means, *(math.sqrt(square + 1e-6) for square in squares)]


def plain_first_token(readout: nn.Module, sample: Sample) -> list[float]:
    return sample[0]


def plain_last_token(readout: nn.Module, sample: Sample) -> list[float]:
    return sample[R - 1]


def plain_mean_sqrt_len(readout: nn.Module, sample: Sample) -> list[float]:
    return [sum(channel) / math.sqrt(R) for channel in channels(sample)]


def plain_weighted_mean(readout: nn.Module, sample: Sample) -> list[float]:
    return [sum(r * x for r, x in enumerate(channel, 1)) / 15 for channel in channels(sample)]


def plain_gem(readout: nn.Module, sample: Sample) -> list[float]:
    p = math.exp(readout.log_p.item())
    means = [sum(math.copysign(abs(x) ** p, x) for x in channel) / R for channel in channels(sample)]
    return [math.copysign((abs(mean) + 1e-6) ** (1 / p), mean) for mean in means]


def plain_channel_pool(readout: nn.Module, sample: Sample) -> list[float]:
    logits = channels(readout.logits.tolist())
    return [dot(softmax(logit), channel) for logit, channel in zip(logits, channels(sample), strict=True)]


def plain_per_register(readout: nn.Module, sample: Sample) -> list[float]:
    weight = readout.weight.tolist()
    return [dot(row, register) for rows, register in zip(weight, sample, strict=True) for row in rows]


def plain_concat_linear(readout: nn.Module, sample: Sample) -> list[float]:
    flat = [x for register in sample for x in register]
    rows, biases = readout.linear.weight.tolist(), readout.linear.bias.tolist()
    return [dot(row, flat) + bias for row, bias in zip(rows, biases, strict=True)]


def plain_abmil(readout: nn.Module, sample: Sample) -> list[float]:
    rows, (score,) = readout.value.weight.tolist(), readout.score.weight.tolist()
    weights = softmax([dot(score, [math.tanh(dot(row, register)) for row in rows]) for register in sample])
    return [dot(weights, channel) for channel in channels(sample)]


def plain_sinusoidal(readout: nn.Module, sample: Sample) -> list[float]:
    numbers = [x for register in sample for x in register]
    return [wave(w * x) for x in numbers for wave in (math.sin, math.cos) for w in (1.0, 1 / 7)]


FORMULAS: dict[str, Callable[[nn.Module, Sample], list[float]]] = {
    "sum": plain_sum,
    "max": plain_max,
    "avgmax": plain_avgmax,
    "mean-std": plain_mean_std,
    "first-token": plain_first_token,
    "last-token": plain_last_token,
    "mean-sqrt-len": plain_mean_sqrt_len,
    "weighted-mean": plain_weighted_mean,
    "gem": plain_gem,
    "channel-pool": plain_channel_pool,
    "per-register-compress-concat": plain_per_register,
    "concat-linear": plain_concat_linear,
    "sinusoidal": plain_sinusoidal,
    "abmil": plain_abmil,
}
every_formula = pytest.mark.parametrize("strategy", FORMULAS)


def trained(strategy: str) -> nn.Module:
    """A readout in float64 with parameters other than the initial ones."""
    torch.manual_seed(0)
    return moved(regplug.create(strategy, num_registers=R, hidden_dim=D, **OPTIONS.get(strategy, {})).double())


def registers(batch: int = 3) -> Tensor:
    return torch.randn(batch, R, D, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)


def plain(strategy: str, readout: nn.Module, given: Tensor) -> Tensor:
    return torch.tensor([FORMULAS[strategy](readout, sample) for sample in given.tolist()], dtype=torch.float64)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-12, atol=1e-12)


@every_formula
def test_a_readout_computes_its_formula(strategy: str) -> None:
    readout = trained(strategy)
    close(readout(registers()), plain(strategy, readout, registers()))


@every_formula
def test_a_formula_slightly_wrong_is_noticed(strategy: str) -> None:
    readout = trained(strategy)
    expected = plain(strategy, readout, registers())
    with pytest.raises(AssertionError):
        close(readout(registers() * (1 + 1e-9)), expected)
    for parameter in readout.parameters():
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-6
        with pytest.raises(AssertionError):
            close(readout(registers()), expected)
        with torch.no_grad():
            parameter.copy_(before)


# ---- sums, maxima, moments


def test_registers_that_tie_for_the_maximum_share_its_gradient() -> None:
    given = torch.tensor([[[2.0], [1.0], [2.0]]], requires_grad=True)
    RegisterMax(3, 1)(given).sum().backward()
    assert given.grad.flatten().tolist() == [0.5, 0.0, 0.5]


def test_the_sum_grows_with_the_number_of_registers() -> None:
    assert RegisterSum(7, 2)(torch.ones(1, 7, 2)).tolist() == [[7.0, 7.0]]


def test_one_register_alone_deviates_by_the_root_of_eps() -> None:
    given = torch.randn(2, 1, D)
    answer = RegisterMeanStd(1, D, eps=0.25)(given)
    assert torch.equal(answer[:, :D], given[:, 0])
    assert torch.equal(answer[:, D:], torch.full((2, D), 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("eps", [1e-6, 1e-12])
def test_equal_registers_deviate_by_the_root_of_eps_and_have_finite_gradients(dtype: torch.dtype, eps: float) -> None:
    given = torch.full((2, R, D), 0.5, dtype=dtype, requires_grad=True)
    answer = RegisterMeanStd(R, D, eps=eps)(given)
    torch.testing.assert_close(answer[:, D:].detach(), torch.full((2, D), math.sqrt(eps), dtype=dtype))
    answer[:, D:].sum().backward()
    assert torch.equal(given.grad, torch.zeros_like(given))


# ---- the generalised mean


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("p", [0.5, 1.0, 3.0, 20.0])
def test_at_zero_the_generalised_mean_is_zero_and_all_gradients_are_finite(dtype: torch.dtype, p: float) -> None:
    readout = RegisterGeM(R, D, p=p).to(dtype)
    for some in (torch.zeros(2, R, D), torch.eye(R, D).expand(2, -1, -1), torch.tensor([1.0, -1, 0, 0, 0])[:, None]):
        given = some.expand(2, R, D).to(dtype).clone().requires_grad_()
        answer = readout(given)
        # not every m is 0, so the cotangent is one that gradients can tell
        answer.backward(torch.linspace(-1, 1, 2 * D).view(2, D).to(dtype))
        assert given.grad.isfinite().all()
        assert readout.log_p.grad.isfinite()
        if not some.any():
            assert not answer.any()
            assert not given.grad.any()
        readout.log_p.grad = None


def test_the_generalised_mean_lies_between_the_mean_and_the_largest_magnitude() -> None:
    close(RegisterGeM(R, D, p=1.0, eps=1e-15).double()(registers()), registers().mean(dim=1))
    given = torch.tensor([[[1.0, 0.5], [-2.0, 0.1], [0.3, 3.0]]], dtype=torch.float64)
    largest = RegisterGeM(3, 2, p=200.0).double()(given)
    assert largest.flatten().tolist() == pytest.approx([-2.0, 3.0], rel=0.01)


def test_the_generalised_mean_keeps_signs() -> None:
    readout = trained("gem")
    close(readout(-registers()), -readout(registers()).detach())


def test_the_exponent_starts_at_the_given_value_and_no_step_makes_it_negative() -> None:
    assert RegisterGeM(R, D).log_p.exp().item() == pytest.approx(3.0)
    readout = RegisterGeM(R, D, p=0.5)
    with torch.no_grad():
        readout.log_p -= 2.0
    given = torch.randn(2, R, D, requires_grad=True)
    readout(given).sum().backward()
    assert readout.log_p.exp() > 0
    assert given.grad.isfinite().all()


# ---- compared with the built-in readouts


def test_channel_pool_starts_as_the_mean_and_is_pool_where_channels_agree() -> None:
    readout = RegisterChannelPooling(R, D).double()
    close(readout(registers()), registers().mean(dim=1))
    pool = regplug.create("pool", num_registers=R, hidden_dim=D).double()
    with torch.no_grad():
        pool.logits.copy_(torch.arange(R))
        readout.logits.copy_(pool.logits[:, None].expand(R, D))
    close(readout(registers()), pool(registers()).detach())


def test_equal_projections_are_compress_concat() -> None:
    shared = regplug.create("compress-concat", num_registers=R, hidden_dim=D, compressed_dim=2).double()
    readout = PerRegisterCompressConcat(R, D, 2).double()
    with torch.no_grad():
        readout.weight.copy_(shared.compress.weight.expand(R, -1, -1))
    close(readout(registers()), shared(registers()).detach())


def test_projections_are_initialised_like_a_linear_layer() -> None:
    torch.manual_seed(0)
    weight = PerRegisterCompressConcat(8, 64, 32).weight
    linear = nn.Linear(64, 8 * 32, bias=False).weight
    assert weight.abs().max() <= 1 / 8
    assert weight.std().item() == pytest.approx(linear.std().item(), rel=0.02)
    assert not torch.equal(weight[0], weight[1])
