"""Sites that are called several times, and sites behind which other weights are zero."""

from __future__ import annotations

import pytest
import torch
from support.small_film import made
from support.small_guided import Cached, Guided, InlineAdaLN, Vectors, fitted, vectors
from torch import Tensor, nn

import regplug
from regplug.commands.effect.subject import Subject


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("trained", [None, True, False])
def test_guidance_with_two_calls_is_used_although_one_call_has_no_conditioning(trained):
    report = regplug.effect(fitted(made(Guided)), vectors(16), trained=trained)
    [site] = report.sites
    assert site.swap > 0.5
    assert site.state == "used"
    assert report.defects == ()


def test_guidance_at_its_start_is_at_start():
    network = made(Guided)
    nn.init.zeros_(network.net.film.weight)
    report = regplug.effect(network, vectors(16), trained=False)
    assert [one.state for one in report.sites] == ["at-start"]
    assert report.defects == ()


class InTurn(Vectors):
    """The same layer gives all pairs before any is used."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        features = self.norm(self.body(x))
        for gamma, beta in [self.film(self.cond(one)).chunk(2, dim=-1) for one in (0 * c, c, 0 * c)]:
            features = features * (1 + gamma)[:, None] + beta[:, None]
        return self.head(features).mean(1)


def test_calls_before_their_use_are_told_apart_too():
    report = regplug.effect(made(InTurn), vectors(16), trained=True)
    assert [one.state for one in report.sites] == ["used"]
    assert report.of("constant-pairs") == ()


def test_calls_that_are_all_constant_are_found():
    network = fitted(made(Guided))
    with torch.no_grad():
        network.net.film.weight.zero_()
    report = regplug.effect(network, vectors(16), trained=True)
    assert [(one.kind, one.module) for one in report.defects] == [("zero-last-layer", report.sites[0].module)]
    assert [one.state for one in report.sites] == ["constant"]


# ---- zeros elsewhere


def test_gates_of_zero_in_one_forward_with_a_last_layer_of_zero_are_at_start():
    network = made(InlineAdaLN)
    report = regplug.effect(network, vectors(16))
    assert report.defects == ()
    assert [one.state for one in report.sites] == ["at-start", "at-start"]
    assert not network.head.weight.any()


class Twice(nn.Module):
    """The same, called twice; the site is then the whole inner network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = InlineAdaLN()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        free = self.net(x, 0 * c)
        return free + 2 * (self.net(x, c) - free)


def test_gates_of_zero_in_a_network_that_is_called_twice_are_at_start():
    report = regplug.effect(made(Twice), vectors(16))
    assert report.defects == ()
    assert {one.state for one in report.sites} == {"at-start"}


def test_gates_of_zero_without_a_way_around_are_wiped_whatever_the_last_layer_is():
    network = made(lambda: InlineAdaLN(has_way_around=False))
    report = regplug.effect(network, vectors(16))
    assert {one.module for one in report.of("features-wiped")} == {"ada.0", "ada.1"}
    nn.init.normal_(network.head.weight)
    assert len(regplug.effect(network, vectors(16)).of("features-wiped")) == 2


# ---- vectors that a module keeps


def test_a_vector_that_a_module_keeps_from_its_first_batch_is_stale():
    report = regplug.effect(made(Cached), vectors(16))
    assert [site.module for site in report.sites] == ["film"]
    assert [one.grade for one in report.of("stale-conditioning")] == ["sure"]


def test_attributes_of_modules_start_anew_and_those_of_the_network_stay():
    network = made(Cached)
    network.seen, network.count = [1], 0
    subject = Subject(network, (), vectors(16), 16)
    subject.run()
    network.seen.append(2)
    network.count += 1
    subject.forget()
    assert (network.seen, network.count, hasattr(network, "kept")) == ([1], 0, False)
    assert len(subject.run()[""]) == 1
