"""Options that cannot be used are refused when the readout is asked for, by constructor and registry alike."""

from __future__ import annotations

import pkgutil
import re
from typing import Any

import pytest
import torch

import regplug
from regplug_zoo import plugin

R, D = 4, 24
NAN, INF = float("nan"), float("inf")

# strategy, options, what the constructor says behind its name
POSITIVE = "expected a positive integer, got"
FINITE = "expected a positive, finite number, got"
REFUSED = [
    *(("gem", {"p": value}, f"p: {FINITE} {value!r}.") for value in (0.0, -3.0, NAN, INF)),
    *(("gem", {"eps": value}, f"eps: {FINITE} {value!r}.") for value in (0.0, -1e-6, NAN)),
    *(("mean-std", {"eps": value}, f"eps: {FINITE} {value!r}.") for value in (0.0, -1e-6, NAN, INF)),
    *(("per-register-compress-concat", {"compressed_dim": n}, f"compressed_dim: {POSITIVE} {n}.") for n in (0, -1)),
    *(("concat-linear", {"out_features": n}, f"out_features: {POSITIVE} {n}.") for n in (0, -1)),
    *(("abmil", {"attention_dim": n}, f"attention_dim: {POSITIVE} {n}.") for n in (0, -1)),
    *(("class-attention", {"num_heads": n}, f"num_heads: {POSITIVE} {n}.") for n in (0, -1)),
    ("class-attention", {"num_heads": 5}, "hidden_dim: expected a multiple of num_heads=5, got 24."),
    ("class-attention", {"num_heads": 48}, "hidden_dim: expected a multiple of num_heads=48, got 24."),
    *(("pma", {"num_seeds": n}, f"num_seeds: {POSITIVE} {n}.") for n in (0, -1)),
    ("pma", {"num_heads": 0}, f"num_heads: {POSITIVE} 0."),
    ("pma", {"num_heads": 7}, "hidden_dim: expected a multiple of num_heads=7, got 24."),
    *(("efficient-probing", {"num_queries": n}, f"num_queries: {POSITIVE} {n}.") for n in (0, -1)),
    ("efficient-probing", {"num_queries": 4, "d_out": 0}, f"d_out: {POSITIVE} 0."),
    ("sinusoidal", {"dim": 4, "max_period": 1e-40}, "max_period: expected at least 1e-06, got 1e-40."),
    *(("sinusoidal", {"dim": n}, f"dim: {POSITIVE} {n}.") for n in (0, -2)),
    *(("sinusoidal", {"dim": n}, f"dim: expected an even number, got {n}.") for n in (1, 7)),
    *(("sinusoidal", {"dim": 4, "max_period": p}, f"max_period: {FINITE} {p!r}.") for p in (0.0, -1.0, NAN, INF)),
    ("efficient-probing", {}, "hidden_dim: expected a multiple of num_queries * d_out=32 * 1, got 24."),
    (
        "efficient-probing",
        {"num_queries": 8, "d_out": 2},
        "hidden_dim: expected a multiple of num_queries * d_out=8 * 2, got 24.",
    ),
]


def class_of(strategy: str) -> type[torch.nn.Module]:
    [build] = [str(entry.build) for entry in plugin.regplug_readouts() if entry.name == strategy]
    found: type[torch.nn.Module] = pkgutil.resolve_name(build)
    return found


@pytest.mark.parametrize(("strategy", "options", "text"), REFUSED)
def test_an_option_out_of_range_is_refused(strategy: str, options: dict[str, Any], text: str) -> None:
    build = class_of(strategy)
    with pytest.raises(regplug.SpecError) as constructed:
        build(R, D, **options)
    assert str(constructed.value) == f"{build.__name__}: {text}"
    # the registry answers first where the value is none that JSON can store: nan and inf
    with pytest.raises(regplug.SpecError, match=re.escape(text.partition(", got ")[2].removesuffix("."))):
        regplug.resolve(strategy, num_registers=R, hidden_dim=D, **options)


@pytest.mark.parametrize(
    ("strategy", "options", "value"),
    [
        ("gem", {"p": "3"}, "'3'"),
        ("gem", {"p": True}, "True"),
        ("mean-std", {"eps": None}, "None"),
        ("abmil", {"attention_dim": 2.0}, "2.0"),
        ("concat-linear", {"out_features": True}, "True"),
        ("pma", {"layer_norm": 1}, "1"),
        ("pma", {"layer_norm": "yes"}, "'yes'"),
        ("efficient-probing", {"num_queries": NAN}, "nan"),
    ],
)
def test_an_option_of_another_type_is_refused(strategy: str, options: dict[str, Any], value: str) -> None:
    (word,) = options
    with pytest.raises(regplug.SpecError, match=f": {word}: expected .*, got {re.escape(value)}"):
        class_of(strategy)(R, D, **options)
    with pytest.raises(regplug.SpecError, match=f": option '{word}': expected .*, got {re.escape(value)}"):
        regplug.create(strategy, num_registers=R, hidden_dim=D, **options)


@pytest.mark.parametrize("strategy", ["per-register-compress-concat", "concat-linear"])
def test_a_width_that_cannot_be_found_must_be_named(strategy: str) -> None:
    with pytest.raises(regplug.SpecError, match="expected option .*: int, got none"):
        regplug.resolve(strategy, num_registers=R, hidden_dim=D)
