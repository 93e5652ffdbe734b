"""What drawn inputs allow to say, several calls of one site, and networks where nothing can be measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.commands import run_command
from support.seeded_defects import AT_START, DEFECTS
from support.seeded_networks import ARCHITECTURES
from support.small_film import Film, inputs, made
from torch import nn

import regplug
from regplug.commands.effect.findings import BY_WEIGHTS
from regplug.commands.effect.report import NOTHING


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def shapes(given: dict[str, torch.Tensor]) -> Any:
    """The inputs' shapes, for drawing."""
    on_meta = {name: torch.empty(2, *one.shape[1:], dtype=one.dtype, device="meta") for name, one in given.items()}
    return lambda sizes: ((), on_meta)


@pytest.mark.parametrize("kind", [kind for kind, some in DEFECTS.items() if "dit" in some])
def test_on_drawn_inputs_only_what_weights_show_is_sure(kind):
    architecture = ARCHITECTURES["dit"]
    network = architecture.start() if kind in AT_START else architecture.trained()
    DEFECTS[kind]["dit"](network)
    report = regplug.effect(network)
    assert report.inputs == "drawn"
    assert report.of(kind)
    for one in report.findings:
        assert one.grade != "sure" or one.kind in BY_WEIGHTS, one.kind


def test_on_drawn_inputs_numbers_that_are_not_finite_may_be_due_to_them():
    class Broken(Film):
        def pair(self, numbers: torch.Tensor) -> Any:
            gamma, beta = super().pair(numbers)
            return gamma, beta * float("inf")

    assert [one.grade for one in regplug.effect(made(Broken), inputs()).of("not-finite")] == ["sure"]
    drawn = regplug.effect(made(Broken), shapes=shapes(inputs()))
    assert [one.grade for one in drawn.of("not-finite")] == ["maybe"]
    assert drawn.failing(["any"]) == ()


def test_on_drawn_inputs_missing_tensors_are_sure():
    report = regplug.effect(made(), shapes=shapes(inputs()), missing=["film.weight"])
    assert [one.grade for one in report.of("never-loaded")] == ["sure"]


# ---- nothing measured

PLAIN = ("torch.nn:Linear", "-O", "in_features=3", "-O", "out_features=2")


@pytest.mark.parametrize("fail_on", ["any", "no-effect"])
def test_a_network_without_film_fails_if_a_finding_would(fail_on):
    code, out, err = run_command("audit", "--effect", *PLAIN, "--fail-on", fail_on)
    assert (code, err) == (1, "")
    assert out.splitlines()[-1] == f"failed: {NOTHING}"
    code, out, _ = run_command("audit", "--effect", *PLAIN, "--fail-on", fail_on, "--json")
    assert code == 1
    assert NOTHING in out
    values = regplug.effect(nn.Linear(3, 2)).as_json([fail_on])
    assert (values["ok"], values["failed_on"], values["notes"]) == (False, [], [NOTHING])
    assert regplug.effect(nn.Linear(3, 2)).as_json()["ok"] is True


def test_missing_names_of_a_wrapped_network_are_known_with_and_without_its_prefix():
    wrapped = nn.DataParallel(made())
    for name in ("film.weight", "module.film.weight"):
        assert [one.grade for one in regplug.effect(wrapped, inputs(), missing=[name]).of("never-loaded")] == ["sure"]
