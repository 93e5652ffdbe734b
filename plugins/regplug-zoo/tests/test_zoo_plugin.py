"""What the plugin offers: eighteen strategies, named without importing torch, shipped like the core's own."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import regplug
import regplug_zoo
from regplug_zoo import plugin

R, D = 4, 24
# strategy -> options, the width at R = 4 and D = 24
OFFERED = {
    "sum": ({}, D),
    "max": ({}, D),
    "avgmax": ({}, D),
    "mean-std": ({}, 2 * D),
    "first-token": ({}, D),
    "last-token": ({}, D),
    "mean-sqrt-len": ({}, D),
    "weighted-mean": ({}, D),
    "gem": ({}, D),
    "channel-pool": ({}, D),
    "per-register-compress-concat": ({"compressed_dim": 7}, R * 7),
    "concat-linear": ({"out_features": 31}, 31),
    "abmil": ({}, D),
    "simpool": ({}, D),
    "class-attention": ({"num_heads": 3}, D),
    "pma": ({"num_seeds": 3}, 3 * D),
    "efficient-probing": ({"num_queries": 6, "d_out": 2}, D // 2),
    "sinusoidal": ({"dim": 4}, R * D * 4),
}
MODULES = ("attention", "concatenations", "moments", "positions", "queries", "times", "weighted")


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys, regplug, regplug_zoo.plugin\n"
        "known = regplug.strategies()\n"
        "assert {'sum', 'gem', 'pma', 'efficient-probing'} <= set(known), known\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_registry_knows_who_brought_each_strategy() -> None:
    registry = regplug.default_registry()
    ours = {entry.name: entry for entry in registry.readout_entries() if entry.full_name.startswith("regplug-zoo:")}
    assert set(ours) == set(OFFERED)
    for entry in ours.values():
        assert (entry.provenance.distribution, entry.provenance.version) == ("regplug-zoo", "0.1.0")
        assert entry.summary


@pytest.mark.parametrize("strategy", OFFERED)
def test_a_strategy_has_the_width_that_it_says(strategy: str) -> None:
    options, width = OFFERED[strategy]
    spec = regplug.resolve(f"regplug-zoo:{strategy}", num_registers=R, hidden_dim=D, **options)
    assert spec.cond_dim == width
    assert spec.build()(torch.zeros(2, R, D)).shape == (2, width)


def test_every_class_of_the_package_is_offered() -> None:
    modules = [importlib.import_module(f"regplug_zoo.{name}") for name in MODULES]
    found = {
        f"{module.__name__.removeprefix('regplug_zoo.')}:{name}"
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__
    }
    assert found == {str(entry.build).removeprefix("regplug_zoo.") for entry in plugin.regplug_readouts()}
    assert {path.stem for path in Path(regplug_zoo.__file__).parent.glob("*.py")} == {
        *MODULES,
        "plugin",
        "sizes",
        "__init__",
    }


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_hold(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"regplug_zoo.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.torture
@pytest.mark.compiler
@pytest.mark.usefixtures("cache")
def test_an_attention_of_a_plugin_becomes_an_aotinductor_program(tmp_path: Path) -> None:
    spec = regplug.resolve("class-attention", num_registers=R, hidden_dim=D, num_heads=3)
    readout = spec.build()
    regplug.export(spec, readout, tmp_path / "b", backends=["aotinductor"])
    program = regplug.load(tmp_path / "b", program="aotinductor")
    for batch in (0, 1, 5):
        registers = torch.randn(batch, R + 3, D)[:, 2 : 2 + R]
        torch.testing.assert_close(program(registers), readout(registers).detach(), rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(program(registers), readout(registers * 1.01).detach(), rtol=1e-5, atol=1e-6)


def test_the_equation_and_source_of_each_strategy_are_those_of_its_docstring() -> None:
    for entry in plugin.regplug_readouts():
        described = " ".join(str(pkgutil.resolve_name(str(entry.build)).__doc__).replace("``", "").split())
        assert str(entry.equation) in described
        assert str(entry.source) in described
