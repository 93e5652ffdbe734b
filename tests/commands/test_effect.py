"""The numbers of the effect are right, and the network stays as it is."""

from __future__ import annotations

import doctest
import random
from typing import Any

import numpy as np
import pytest
import torch
from support.small_film import PLACES, WIDTH, B, Film, inputs, made, only
from torch import Tensor, nn
from torch.nn import functional as F

import regplug
from regplug.commands.effect.subject import other_in_eval


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


# ---- the numbers


class BetaAlone(Film):
    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return 0 * self.body(x) + self.film(state)[:, None, :WIDTH]


def test_swap_mean_and_zero_are_those_computed_by_hand():
    network, given = made(BetaAlone), inputs()
    site = only(regplug.effect(network, given))
    with torch.no_grad():
        rows = network.film(given["state"])[:, :WIDTH].double()
        others = network.film(given["state"].roll(B // 2, 0))[:, :WIDTH].double()
        average = network.film(given["state"].mean(0, keepdim=True))[:, :WIDTH].double()
        zero = network.film(torch.zeros(1, 4))[:, :WIDTH].double()
    spread = torch.cdist(rows, rows).sum() / (B * (B - 1))
    for measured, other in ((site.swap, others), (site.mean, average), (site.zero, zero)):
        assert measured == pytest.approx(float((rows - other).norm(dim=1).mean() / spread), rel=1e-5)


def test_an_output_that_follows_the_conditioning_alone_has_an_effect_of_about_one():
    assert only(regplug.effect(made(BetaAlone), inputs())).swap == pytest.approx(1, abs=0.2)


def test_statistics_are_those_of_the_factors_and_the_summands():
    network, given = made(), inputs()
    site = only(regplug.effect(network, given))
    with torch.no_grad():
        gamma, beta = network.pair(network.film(given["state"]))
    for found, numbers in ((site.gamma, gamma), (site.beta, beta)):
        assert found.low == pytest.approx(float(numbers.min()))
        assert found.high == pytest.approx(float(numbers.max()))
        assert found.mean == pytest.approx(float(numbers.mean()), abs=1e-6)
        assert found.std == pytest.approx(float(numbers.std(0).mean()), rel=1e-5)
        assert found.dead == 0
    assert site.applied_at == ("",)
    assert site.sources == ("input state",)


def test_dead_channels_are_counted():
    network = made(scale=0.2)
    with torch.no_grad():
        network.film.weight[: WIDTH // 4] = 0
    report = regplug.effect(network, inputs())
    assert only(report).gamma.dead == 0.25
    assert only(report).beta.dead == 0
    assert report.defects == ()


def test_the_gradient_is_zero_if_the_output_does_not_react_and_grows_with_the_effect():
    class Weaker(Film):
        def behind(self, features: Tensor) -> Tensor:
            return features - 0.9 * (features - self.body(self.x))

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            self.x = x
            return super().forward(x, state)

    strong, weak = (only(regplug.effect(made(one), inputs())) for one in (Film, Weaker))
    assert strong.gradient > 3 * weak.gradient > 0
    assert strong.swap > 3 * weak.swap > 0


# what a norm behind FiLM leaves: of gamma and beta that differ between channels, and that are common to all;
# beta is part of what an RMS norm divides by, so that it keeps part of gamma
NORMS = {
    "layer": (lambda h: F.layer_norm(h, (WIDTH,)), ("kept", "kept"), ("undone", "undone")),
    "rms": (lambda h: F.rms_norm(h, (WIDTH,)), ("kept", "kept"), ("part", "kept")),
    "instance": (lambda h: F.instance_norm(h.transpose(1, 2)).transpose(1, 2), ("undone",) * 2, ("undone",) * 2),
    "group": (lambda h: F.group_norm(h.transpose(1, 2), 4).transpose(1, 2), ("kept", "kept"), ("undone", "undone")),
    "batch": (
        lambda h: F.batch_norm(h.transpose(1, 2), torch.zeros(WIDTH), torch.ones(WIDTH)).transpose(1, 2),
        ("kept", "kept"),
        ("kept", "kept"),
    ),
}


@pytest.mark.parametrize("is_common", [False, True], ids=["per channel", "common to all channels"])
@pytest.mark.parametrize("name", NORMS)
def test_what_a_norm_leaves_of_the_modulation_is_measured(name, is_common):
    norm, per_channel, common = NORMS[name]

    class Normed(Film):
        def pair(self, numbers: Tensor) -> Any:
            gamma, beta = super().pair(0.2 * numbers)  # a negative gamma would leave its sign behind
            return (gamma[:, :1], beta[:, :1]) if is_common else (gamma, beta)

        def behind(self, features: Tensor) -> Tensor:
            return norm(features)

    report = regplug.effect(made(Normed), inputs())
    site = only(report)
    for left, expected in zip(
        (site.gamma_transmission, site.beta_transmission), common if is_common else per_channel, strict=True
    ):
        low, high = {"kept": (0.5, 2), "part": (0.05, 0.5), "undone": (0, 0.05)}[expected]
        assert low <= left < high
    undone = "undone" in (common if is_common else per_channel)
    assert bool(report.of("undone-by-norm")) is undone
    assert bool(report.defects) is undone


def test_a_norm_in_a_branch_does_not_undo_what_goes_around_it():
    class Around(Film):
        def behind(self, features: Tensor) -> Tensor:
            return features + F.instance_norm(features.transpose(1, 2)).transpose(1, 2)

    assert regplug.effect(made(Around), inputs()).defects == ()


# ---- the network stays as it is


def snapshot(network: nn.Module) -> Any:
    return {
        "state": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "ids": [id(one) for one in (*network.parameters(), *network.buffers())],
        "grads": [None if one.grad is None else one.grad.clone() for one in network.parameters()],
        "asks": [one.requires_grad for one in network.parameters()],
        "modes": [one.training for one in network.modules()],
        "hooks": [(len(one._forward_hooks), len(one._forward_pre_hooks)) for one in network.modules()],
        "attributes": [sorted(vars(one)) for one in network.modules()],
    }


class WithState(Film):
    """It has running statistics, dropout, a counter, and a cache of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(PLACES), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def behind(self, features: Tensor) -> Tensor:
        self.calls += 1
        self.cache = features
        return self.drop(self.norm(features)) + random.random() + float(np.random.rand())


def test_network_modes_buffers_hooks_and_random_states_are_the_same_to_the_bit():
    network = made(WithState).train()
    network.norm.eval()
    network.film.weight.requires_grad_(False)
    network.head.weight.grad = torch.ones_like(network.head.weight)
    calls: list[None] = []
    network.film.register_forward_hook(lambda *_: calls.append(None))
    before, given = snapshot(network), inputs()
    kept = {name: tensor.clone() for name, tensor in given.items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    regplug.effect(network, given)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    after = snapshot(network)
    for name, tensor in before.pop("state").items():
        assert torch.equal(after["state"][name], tensor)
    after.pop("state")
    for one, other in zip(before.pop("grads"), after.pop("grads"), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert before == after
    assert all(torch.equal(given[name], tensor) for name, tensor in kept.items())
    assert all(not tensor.requires_grad for tensor in given.values())
    assert torch.is_grad_enabled()


def test_a_network_in_train_mode_is_measured_in_eval_mode_and_a_note_says_so():
    network, given = made(WithState), inputs()
    network.norm.running_mean.fill_(0.5)
    network.norm.running_var.fill_(4)
    network.norm.num_batches_tracked.fill_(9)
    wanted = regplug.effect(network, given)
    assert wanted.notes == ()
    before = snapshot(network.train())
    report = regplug.effect(network, given)
    after = snapshot(network)
    assert all(torch.equal(after["state"][name], tensor) for name, tensor in before["state"].items())
    assert network.norm.num_batches_tracked == 9
    assert all(after["modes"])
    [note] = report.notes
    assert note.startswith("train mode: measured in eval mode, ")
    assert note.endswith("mode: norm, drop")
    assert report.as_json() == {**wanted.as_json(), "notes": [note]}
    network.drop.eval()
    assert regplug.effect(network, given).notes[0].endswith("mode: norm")


class Paths(nn.Module):
    def __init__(self, **rates: Any) -> None:
        super().__init__()
        vars(self).update(rates)


@pytest.mark.parametrize(
    ("part", "is_other"),
    [
        (nn.Dropout(0.1), True),
        (nn.Dropout(0.0), False),
        (nn.BatchNorm1d(4), True),
        (nn.BatchNorm1d(4, track_running_stats=False), False),
        (nn.InstanceNorm1d(4, track_running_stats=True), True),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
        (nn.MultiheadAttention(4, 2), False),
        (nn.LSTM(4, 4, 2, dropout=0.5), True),
        (nn.PairwiseDistance(2.0), False),
        (Paths(drop_prob=0.2), True),
        (Paths(drop_prob=None, p=True), False),
    ],
)
def test_a_module_whose_modes_differ_is_seen(part, is_other):
    network = nn.Sequential(nn.Linear(4, 4), part)
    assert other_in_eval(network) == (["1"] if is_other else [])
    assert other_in_eval(network.eval()) == []


def test_two_reports_of_the_same_network_are_the_same():
    network = made(WithState)
    assert regplug.effect(network, inputs()).as_json() == regplug.effect(network, inputs()).as_json()


def test_gradients_are_measured_under_no_grad_and_in_inference_mode():
    network, wanted = made(), only(regplug.effect(made(), inputs())).gradient
    with torch.no_grad():
        assert only(regplug.effect(network, inputs())).gradient == wanted
        assert not torch.is_grad_enabled()


def test_the_example_in_the_documentation_is_right():
    [example] = doctest.DocTestFinder(recurse=False).find(regplug.effect, globs={"effect": regplug.effect})
    assert example.examples
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0
