"""The numbers of the effect are right, the network stays as it is, and nothing legitimate is called a defect."""

from __future__ import annotations

import doctest
import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from support.readouts import moved
from support.small_dit import DiT, dit_inputs
from torch import Tensor, nn
from torch.nn import functional as F

import regplug
from regplug import SpecError
from regplug.commands.effect.outputs import effect_between, scale_of, varies
from regplug.commands.effect.start import is_default_uniform, looks_trained

B, WIDTH, PLACES = 16, 32, 6


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


class Film(nn.Module):
    """Features ``[B, N, WIDTH]``, scaled and shifted by a state; what each test changes is a method."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, WIDTH)
        self.film = nn.Linear(4, 2 * WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        gamma, beta = self.pair(self.film(self.condition(state)))
        return self.last(self.behind(self.body(x) * gamma[:, None] + beta[:, None]))

    def condition(self, state: Tensor) -> Tensor:
        return state

    def pair(self, numbers: Tensor) -> Any:
        gamma, beta = numbers.chunk(2, dim=-1)
        return 1 + gamma, beta

    def behind(self, features: Tensor) -> Tensor:
        return features

    def last(self, features: Tensor) -> Tensor:
        return self.head(features)


def made(build: Any = Film, scale: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    network = build().eval()
    return moved(network, scale) if scale else network


def inputs(batch: int = B) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(batch, PLACES, 8, generator=generator),
        "state": torch.randn(batch, 4, generator=generator),
    }


def only(report: regplug.EffectReport) -> Any:
    [site] = report.sites
    return site


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


def test_two_reports_of_the_same_network_are_the_same():
    network = made(WithState)
    assert regplug.effect(network, inputs()).as_json() == regplug.effect(network, inputs()).as_json()


def test_gradients_are_measured_under_no_grad_and_in_inference_mode():
    network, wanted = made(), only(regplug.effect(made(), inputs())).gradient
    with torch.no_grad():
        assert only(regplug.effect(network, inputs())).gradient == wanted
        assert not torch.is_grad_enabled()


# ---- what is no defect


def test_a_stochastic_network_is_measured_under_one_seed_and_not_called_broken():
    class Noisy(Film):
        def behind(self, features: Tensor) -> Tensor:
            return F.dropout(features, 0.3, training=True)

        def condition(self, state: Tensor) -> Tensor:
            return state + torch.randn_like(state)

    report = regplug.effect(made(Noisy), inputs())
    assert report.defects == ()
    assert report.noise == 0
    assert [one.kind for one in report.findings] == ["stochastic"]


def test_conditioning_that_is_random_alone_is_not_called_stale():
    class Latent(Film):
        def condition(self, state: Tensor) -> Tensor:
            return 0 * state + torch.randn_like(state)

    assert regplug.effect(made(Latent), inputs()).defects == ()


def test_an_input_that_the_user_holds_constant_is_no_defect():
    report = regplug.effect(made(), {**inputs(), "state": torch.ones(B, 4)})
    assert [(one.kind, one.grade) for one in report.findings] == [("not-varied", "info")]
    assert only(report).state == "not-varied"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_raise_no_false_alarm(dtype):
    given = {name: tensor.to(dtype) for name, tensor in inputs().items()}
    report = regplug.effect(made().to(dtype), given)
    assert report.defects == ()
    assert only(report).state == "used"


def test_identity_film_at_its_start_is_at_start_until_its_first_steps():
    report = regplug.effect(made(DiT), dit_inputs())
    assert {one.state for one in report.sites} == {"at-start"}
    assert {(one.kind, one.grade) for one in report.findings} == {("at-start", "info")}


def test_a_gate_of_zero_whose_way_around_is_outside_is_not_called_wiped():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.gate = nn.Linear(8, 8), nn.Linear(4, 8)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return self.gate(state)[:, None] * self.layer(x)

    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches, self.head = nn.ModuleList(Gated() for _ in range(2)), nn.Linear(8, 3)
            nn.init.zeros_(self.head.weight)

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            for branch in self.branches:
                x = x + branch(x, state)
            return self.head(x)

    report = regplug.effect(made(Outside), inputs())
    assert report.defects == ()
    assert {one.state for one in report.sites} == {"at-start"}


def test_a_network_without_film_has_no_sites_and_no_findings():
    report = regplug.effect(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), torch.randn(B, 8))
    assert (report.sites, report.findings) == ((), ())


def test_weights_at_their_start_in_a_trained_network_are_found_unless_they_are_frozen():
    wide = made(Wide, scale=0.3)
    wide.film.reset_parameters()
    assert [one.grade for one in regplug.effect(wide, wide_inputs(), trained=True).of("never-loaded")] == ["maybe"]
    wide.film.requires_grad_(False)
    assert regplug.effect(wide, wide_inputs(), trained=True).of("never-loaded") == ()


class Wide(Film):
    def __init__(self) -> None:
        super().__init__()
        self.film = nn.Linear(24, 2 * WIDTH)
        self.more = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))

    def behind(self, features: Tensor) -> Tensor:
        return self.more(features)


def wide_inputs() -> dict[str, Tensor]:
    return {**inputs(), "state": torch.randn(B, 24, generator=torch.Generator().manual_seed(2))}


# ---- what is found, beyond the seeded defects


def test_tensors_that_a_checkpoint_does_not_have_are_surely_never_loaded():
    report = regplug.effect(made(), inputs(), missing=["film.weight", "head.bias"])
    found = {one.module: (one.grade, one.number) for one in report.of("never-loaded")}
    assert found == {"film": ("sure", 256), "head": ("sure", 3)}


def test_findings_that_depend_on_data_are_at_most_maybe_on_drawn_inputs():
    class Zeroed(Film):
        input_shape = None

        def last(self, features: Tensor) -> Tensor:
            return self.head(0 * features)

    network = made(Zeroed, scale=0.3)
    assert [one.grade for one in regplug.effect(network, inputs(), trained=True).of("no-effect")] == ["sure"]
    shapes = {name: torch.empty(2, *tensor.shape[1:], device="meta") for name, tensor in inputs().items()}
    drawn = regplug.effect(network, trained=True, shapes=lambda sizes: ((), shapes))
    assert (drawn.inputs, [one.grade for one in drawn.of("no-effect")]) == ("drawn", ["maybe"])


def test_a_pair_that_looks_swapped_may_be():
    class Swapped(Film):
        def pair(self, numbers: Tensor) -> Any:
            gamma, beta = super().pair(numbers)
            return beta, gamma

    network = made(Swapped)
    with torch.no_grad():
        network.film.weight *= 0.1
        network.film.bias *= 0.1
    assert [one.grade for one in regplug.effect(network, inputs()).of("swapped-pair")] == ["maybe"]
    assert regplug.effect(made(), inputs()).of("swapped-pair") == ()


class Reading(nn.Module):
    """A readout of registers behind one layer."""

    def __init__(self, strategy: str, **options: Any) -> None:
        super().__init__()
        sizes = {"num_registers": 4, "hidden_dim": 24}
        self.mix, self.readout = nn.Linear(24, 24), regplug.create(strategy, **sizes, **options)
        self.film, self.head = nn.Linear(24, 2 * WIDTH), nn.Linear(WIDTH, 3)
        self.body = nn.Linear(8, WIDTH)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        gamma, beta = self.film(self.readout(self.mix(tokens)[:, 1:5])).chunk(2, dim=-1)
        return self.head(self.body(x) * (1 + gamma[:, None]) + beta[:, None])


def reading_inputs() -> dict[str, Tensor]:
    return {"x": inputs()["x"], "tokens": torch.randn(B, 9, 24, generator=torch.Generator().manual_seed(3))}


def test_registers_that_weights_of_zero_ignore_may_be_a_defect_and_a_strategy_that_selects_is_none():
    network = made(lambda: Reading("pool"))
    with torch.no_grad():
        next(network.readout.parameters()).copy_(torch.tensor([200.0, 0, 0, 0]))
    [found] = regplug.effect(network, reading_inputs()).of("registers-ignored")
    assert (found.module, found.grade, found.number) == ("readout", "maybe", 3)
    selects = regplug.effect(made(lambda: Reading("select-concat", indices=(0,))), reading_inputs())
    assert [one.grade for one in selects.of("registers-ignored")] == ["info"]
    assert selects.readouts[0].reacts_to == (0,)
    assert selects.defects == selects.failing(["registers-ignored", "any"]) == ()


def test_a_film_module_that_never_runs_is_named():
    class Unused(Film):
        def __init__(self) -> None:
            super().__init__()
            self.spare = regplug.KernelFiLMGenerator(4, 8, 1)

    found = regplug.effect(made(Unused), inputs()).of("never-called")
    assert [(one.module, one.grade) for one in found] == [("spare", "maybe")]


def test_a_layer_that_is_shared_by_two_networks_inputs_of_samples_does_not_count_as_mixing():
    class Attending(Film):
        """Every sample sees the whole batch, whatever it is conditioned on."""

        def last(self, features: Tensor) -> Tensor:
            return self.head(features - features.mean(0))

    assert regplug.effect(made(Attending), inputs()).of("batch-mixed") == ()


# ---- parts


def test_a_spread_of_zero_is_replaced_by_the_size():
    one = torch.ones(4, 3)
    assert effect_between([one], [2 * one], 4) == pytest.approx(1)
    assert effect_between([one], [one], 4) == 0
    assert effect_between([one], [one * float("nan")], 4) is None
    assert effect_between([], [], 4) is None
    assert scale_of(one, 4).spread == 0


def test_rounding_is_no_variation():
    rows = torch.ones(4, 3) + 1e-7 * torch.arange(4)[:, None]
    assert not varies(rows, 4)
    assert varies(rows + 1e-4 * torch.arange(4)[:, None], 4)


def test_default_values_are_recognised_and_trained_ones_are_not():
    torch.manual_seed(0)
    layers = [nn.Linear(64, 32) for _ in range(200)]
    assert sum(is_default_uniform(one.weight) for one in layers) >= 190  # the test is at 1 %
    assert not any(is_default_uniform(moved(one, 0.01).weight) for one in layers)
    assert looks_trained(nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32))) is False
    assert looks_trained(moved(nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32)), 0.2)) is True
    assert looks_trained(nn.Sequential(nn.ReLU())) is None


# ---- the report


def test_the_report_is_json_without_nan_and_fails_on_what_is_asked():
    class Broken(Film):
        def pair(self, numbers: Tensor) -> Any:
            gamma, beta = super().pair(numbers)
            return gamma, beta * float("inf")

    report = regplug.effect(made(Broken), inputs())
    values = report.as_json(["not-finite"])
    assert json.loads(json.dumps(values, allow_nan=False)) == json.loads(json.dumps(values))
    assert (values["failed_on"], values["ok"]) == (["not-finite"], False)
    assert report.as_json(["no-effect"])["ok"] is True
    assert report.as_json(["any"])["ok"] is False
    assert report.as_json()["ok"] is True


# ---- bad input


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3))


def locked() -> nn.Module:
    network = made()
    network.stream = (one for one in ())  # a generator cannot be copied
    return network


BAD = {
    "no module": (lambda: 3, None, {}, r"effect: network: expected an nn\.Module, got int"),
    "scripted": (
        lambda: torch.jit.script(nn.Linear(2, 2)),
        None,
        {},
        "expected a module in Python, got a scripted one",
    ),
    "on meta": (lambda: made().to("meta"), None, {}, "expected one with values, got none"),
    "lazy": (lazy, None, {}, "expected one with values, got none"),
    "not copied": (locked, None, {}, "expected a network that can be copied, got TypeError"),
    "no tensors": (made, {"x": 1, "state": 2}, {}, "expected tensors of the network's forward"),
    "two samples": (made, inputs(2), {}, r"at least 4, first in every tensor, got \[2\]"),
    "other counts": (made, {**inputs(), "state": torch.ones(8, 4)}, {}, r"got \[8, 16\]"),
    "NaN": (made, {**inputs(), "state": torch.full((B, 4), float("nan"))}, {}, r"finite numbers, got NaN or infinity"),
    "all the same": (
        made,
        {"x": torch.ones(B, PLACES, 8), "state": torch.ones(B, 4)},
        {},
        "expected samples that differ",
    ),
    "another width": (made, {**inputs(), "state": torch.ones(B, 5)}, {}, "expected inputs that its forward takes"),
    "another name": (made, {"x": inputs()["x"], "mood": inputs()["state"]}, {}, "inputs that its forward takes"),
    "few drawn": (made, None, {"batch": 2}, "expected at least 4 samples, got 2"),
    "text for a number": (made, None, {"batch": "many"}, "expected a number of samples, got 'many'"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, about lazy modules
@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_measured_is_refused_in_one_short_message(case):
    build, given, options, message = BAD[case]
    with pytest.raises(SpecError, match=message) as caught:
        regplug.effect(build(), given, **options)
    assert len(str(caught.value)) <= 400
    assert str(caught.value).startswith("effect: ")


def test_inputs_that_cannot_be_found_by_trying_are_asked_for():
    class Odd(nn.Module):
        def forward(self, table: Tensor) -> Tensor:
            raise ValueError("not this one")

    with pytest.raises(SpecError, match=r"expected inputs that fit forward\(table\), got none by trying"):
        regplug.effect(Odd())


def test_the_example_in_the_documentation_is_right():
    [example] = doctest.DocTestFinder(recurse=False).find(regplug.effect, globs={"effect": regplug.effect})
    assert example.examples
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0
