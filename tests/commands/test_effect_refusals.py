"""What the effect refuses, what its report says, and the parts that it is made of."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from support.readouts import moved
from support.small_film import PLACES, B, Film, inputs, made
from torch import Tensor, nn

import regplug
from regplug import SpecError
from regplug.commands.effect.outputs import effect_between, scale_of, varies
from regplug.commands.effect.start import is_default_uniform, looks_trained


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


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


class Moody(Film):
    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        raise KeyError("mood")


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
    "a bare key": (lambda: made(Moody), inputs(), {}, r"expected inputs that its forward takes, got KeyError: 'mood'"),
    "few drawn": (made, None, {"batch": 2}, "expected at least 4 samples, got 2"),
    "text for a number": (made, None, {"batch": "many"}, "expected a number of samples, got 'many'"),
    "text for trained": (made, inputs(), {"trained": "yes"}, "trained: expected True, False or None, got 'yes'"),
    "text for a layout": (made, inputs(), {"layout": "x"}, "layout: expected a TokenLayout or None, got 'x'"),
    "text for a list": (made, inputs(), {"missing": "film.weight"}, "missing: expected a list of names of tensors"),
    "number for a list": (made, inputs(), {"missing": 3}, "missing: expected a list of names of tensors"),
    "no name": (made, inputs(), {"missing": [3]}, "missing: expected a list of names of tensors"),
    "no such tensor": (
        made,
        inputs(),
        {"missing": ["zzz"]},
        r"network's tensors, got 'zzz'; known: body.bias, body.weight,",
    ),
    "text for a seed": (made, inputs(), {"seed": "x"}, "seed: expected an integer, got 'x'"),
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

    with pytest.raises(SpecError, match=r"fit forward\(table\), got none by trying: ValueError: not this"):
        regplug.effect(Odd())
