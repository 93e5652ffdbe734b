"""Nothing legitimate is called a defect; what is found has the right grade and module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small_dit import DiT, dit_inputs
from support.small_film import WIDTH, B, Film, inputs, made, only
from torch import Tensor, nn
from torch.nn import functional as F

import regplug


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


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
