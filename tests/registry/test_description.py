"""`regplug.describe` gives a strategy's options as data."""

from __future__ import annotations

import json

import pytest
import torch
from support.plugins import registry_of
from torch import nn

import regplug
from regplug import NameLookupError, ReadoutEntry, SpecError
from regplug.registry.references import load_reference


class Choosing(nn.Module):
    """An option of each kind."""

    def __init__(self, tokens: int, hidden_dim: int, width: int, mode: regplug_mode = "a", bias=True, act=nn.GELU):  # noqa: F821
        super().__init__()
        self.map = nn.Linear(hidden_dim, width, bias=bias)

    def forward(self, registers):
        return self.map(registers.mean(1))


@pytest.fixture
def registry() -> regplug.Registry:
    return registry_of(ReadoutEntry("choosing", Choosing, sizes={"tokens": "num_registers"}, summary="maps the mean"))


def test_a_strategy_is_described_as_data() -> None:
    found = regplug.describe("attention")
    assert found.strategy == "regplug:attention"
    assert found.summary
    assert found.options["num_heads"].type == "int"
    assert not found.options["num_heads"].required
    assert found.formula == "D"
    assert found.conditions


def test_options_of_each_kind_have_type_default_and_choices(registry) -> None:
    found = regplug.describe("choosing", registry=registry)
    assert {name: (o.type, o.required, o.default, o.choices) for name, o in found.options.items()} == {
        "width": ("int", True, None, None),
        "mode": ("str", False, "a", None),
        "bias": ("bool", False, True, (False, True)),
        "act": ("type", False, "<class 'torch.nn.modules.activation.GELU'>", None),
    }
    assert found.formula is None  # width is missing
    assert regplug.describe("choosing", registry=registry, width=7).formula == "7"
    assert json.loads(json.dumps(found.as_dict()))["options"]["bias"]["choices"] == [False, True]


def test_every_default_and_every_choice_that_describe_lists_is_taken_by_resolve() -> None:
    sizes = {"num_registers": 4, "hidden_dim": 384}
    tried = 0
    for name in regplug.strategies():
        options = regplug.describe(name).options
        required = {option: [1] if "tuple" in one.type else 2 for option, one in options.items() if one.required}
        for option, one in options.items():
            for value in one.choices or (() if one.required else (one.default,)):
                spec = regplug.resolve(name, **sizes, **required | {option: value})
                assert spec.build()(torch.zeros(1, 4, 384)).shape == (1, spec.cond_dim)
                tried += 1
    assert tried > 15


def test_a_wrong_name_and_a_wrong_option_are_refused(registry) -> None:
    with pytest.raises(NameLookupError, match="strategy 'nosuch'"):
        regplug.describe("nosuch")
    with pytest.raises(SpecError, match="option 'width': expected int, got 'x'"):
        regplug.describe("choosing", registry=registry, width="x")


def test_the_equation_and_source_of_each_built_in_strategy_are_those_of_its_docstring():
    for entry in regplug.default_registry().only("regplug").readout_entries():
        described = " ".join(load_reference(entry.label, entry.build).__doc__.replace("``", "").split())
        assert entry.equation in described
        assert (entry.source or "") in described
