"""Widths as formulas: fitted at some sizes, checked at others, with conditions for the sizes that are refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import regplug
from regplug import ReadoutEntry, SpecError
from regplug.registry.spec import specify
from regplug.registry.width_formula import UNKNOWN, WidthFormula, explain, fit

Width = Callable[[int, int], int | None]


def value_of(formula: str, R: int, D: int) -> Fraction:
    """What a formula gives, computed by Python from its text."""
    return eval(formula.replace("^", "**"), {"R": Fraction(R), "D": Fraction(D)})


# ---- the formula

FORMULAS: dict[str, Width] = {
    "64": lambda R, D: 64,
    "D": lambda R, D: D,
    "2*D": lambda R, D: 2 * D,
    "96*R": lambda R, D: 96 * R,
    "R*D": lambda R, D: R * D,
    "R*D + 2*D": lambda R, D: R * D + 2 * D,
    "R*D + R + D + 1": lambda R, D: (R + 1) * (D + 1),
    "D^2/2 + D/2": lambda R, D: D * (D + 1) // 2,
    "R^2*D": lambda R, D: R * R * D,
    "2*R*D - R": lambda R, D: 2 * R * D - R,
    "-R + 5000": lambda R, D: 5000 - R,
}


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_polynomial_is_found_and_printed(formula: str) -> None:
    assert explain(FORMULAS[formula], 4, 384) == WidthFormula(formula, ())


@settings(max_examples=40)
@given(
    numerator=st.integers(1, 200),
    step=st.integers(1, 24),
    lowest=st.integers(1, 5),
    powers=st.tuples(st.integers(0, 2), st.integers(1, 2)),
    constant=st.integers(0, 9),
    base=st.tuples(st.integers(1, 14), st.integers(1, 40)),
)
def test_what_is_found_gives_the_widths_of_sizes_that_were_not_built(
    numerator: int, step: int, lowest: int, powers: tuple[int, int], constant: int, base: tuple[int, int]
) -> None:
    assume(sum(powers) <= 3 and base[1] >= lowest)

    def width(R: int, D: int) -> int | None:
        if D % step or D // step < lowest:
            return None
        return numerator * R ** powers[0] * D ** powers[1] // step + constant

    found = explain(width, base[0], base[1] * step)
    expected = [f"{step} divides D"] * (step > 1) + [f"D >= {lowest * step}"] * (lowest > 1)
    assert found.conditions == tuple(expected)
    for R, factor in ((23, 29), (57, 1000)):
        assert value_of(found.formula, R, factor * step) == width(R, factor * step)


@pytest.mark.parametrize("divisor", [2, 3, 4, 7, 16, 64, 383])
def test_a_floor_division_is_no_polynomial(divisor: int) -> None:
    found = explain(lambda R, D: R * (D // divisor) or None, 4, 384)
    assert found == WidthFormula(UNKNOWN, (f"D >= {divisor}",))


@pytest.mark.parametrize("limit", [100, 256, 384, 500, 3000])
def test_a_formula_of_small_sizes_alone_is_no_formula(limit: int) -> None:
    assert explain(lambda R, D: min(D, limit), 4, 384).formula == UNKNOWN


def test_a_fit_that_the_held_out_widths_contradict_is_unknown() -> None:
    known, held_out = {(1, 5): 5, (2, 3): 6, (3, 7): 21}, {(5, 11): 55, (7, 2): 14}
    assert fit(("R", "D"), known, held_out) == "R*D"
    assert fit(("R", "D"), known, held_out | {(7, 2): 15}) == UNKNOWN


# ---- the conditions

CONDITIONS: dict[str, tuple[Width, tuple[str, ...]]] = {
    "D/8": (lambda R, D: D // 8 if D % 32 == 0 else None, ("32 divides D",)),
    "R*D/24": (lambda R, D: R * D // 24 if R % 2 == 0 and D % 12 == 0 else None, ("2 divides R", "12 divides D")),
    "3*D": (lambda R, D: 3 * D if R >= 3 else None, ("R >= 3",)),
    "D": (lambda R, D: D if D >= 14 and D % 4 == 0 else None, ("4 divides D", "D >= 16")),
    "R*D": (lambda R, D: R * D if R <= 16 else None, ("R <= 16",)),
    "384*R": (lambda R, D: R * D if D == 384 else None, ("D = 384",)),
    "4*D": (lambda R, D: R * D if R == 4 else None, ("R = 4",)),
    "1536": (lambda R, D: R * D if (R, D) == (4, 384) else None, ("R = 4", "D = 384")),
}


@pytest.mark.parametrize("formula", CONDITIONS)
def test_sizes_that_are_refused_become_conditions(formula: str) -> None:
    width, conditions = CONDITIONS[formula]
    assert explain(width, 4, 384) == WidthFormula(formula, conditions)


def test_refusals_without_a_pattern_are_listed() -> None:
    found = explain(lambda R, D: D if D % 5 != 2 else None, 4, 384)
    assert (found.formula, len(found.conditions)) == ("D", 1)
    assert found.conditions[0].startswith("some D refuse: 2, ")
    listed = found.conditions[0].partition(": ")[2].removesuffix(", ...").split(", ")
    assert {int(size) % 5 for size in listed} == {2}


def test_sizes_that_only_refuse_together_are_listed_together() -> None:
    found = explain(lambda R, D: R + D if (R + D) % 2 == 0 or R == 4 or D == 384 else None, 4, 384)
    assert found.conditions[-1].startswith("some (R, D) refuse: (")


# ---- of readouts


def specified(build: Any, R: int = 4, D: int = 48, **options: Any) -> regplug.ReadoutSpec:
    return specify(ReadoutEntry("x", build), R, D, options)


READOUTS = {
    "mean": ({}, "D", ()),
    "pool": ({}, "D", ()),
    "concat": ({}, "R*D", ()),
    "compress-concat": ({"compressed_dim": 96}, "96*R", ()),
    "select-concat": ({"indices": [0, 2]}, "2*D", ("R >= 3",)),
    "mamba-reg": ({"ratio": 4}, "R*D/4", ("4 divides D",)),
    "attention": ({"num_queries": 3, "num_heads": 6}, "3*D", ("6 divides D",)),
}


@pytest.mark.parametrize("strategy", READOUTS)
def test_the_strategies_have_their_formulas(strategy: str) -> None:
    options, formula, conditions = READOUTS[strategy]
    spec = regplug.resolve(strategy, num_registers=4, hidden_dim=384, **options)
    assert (spec.formula, spec.conditions) == (formula, conditions)


def test_every_strategy_that_needs_no_options_gives_what_its_formula_says() -> None:
    checked = 0
    for strategy in regplug.strategies():
        try:
            spec = regplug.resolve(strategy, num_registers=4, hidden_dim=384)
        except SpecError:
            continue
        assert value_of(spec.formula, 4, 384) == spec.cond_dim
        assert value_of(spec.formula, 7, 768) == regplug.resolve(strategy, num_registers=7, hidden_dim=768).cond_dim
        checked += 1
    assert checked >= 5


def test_a_formula_allocates_nothing_and_leaves_the_spec_as_it_was() -> None:
    spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=10**7, compressed_dim=10**6)
    before = torch.get_rng_state()
    assert spec.formula == "1000000*R"
    assert torch.equal(torch.get_rng_state(), before)
    assert pickle.loads(pickle.dumps(spec)) == copy.deepcopy(spec) == spec


class Floors(nn.Module):
    """Rounds where it should refuse."""

    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(hidden_dim, hidden_dim // 4)

    def forward(self, registers: Tensor) -> Tensor:
        return self.project(registers).flatten(1)


class FailsLate(nn.Module):
    """States a width for every D; its forward takes multiples of 8."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.out_dim = hidden_dim

    def forward(self, registers: Tensor) -> Tensor:
        return registers.unflatten(2, (8, -1)).flatten(2).mean(1)


class NoMetaForward(nn.Module):
    """Only says what it gives: its forward reads numbers."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.out_dim = 3 * hidden_dim

    def forward(self, registers: Tensor) -> Tensor:
        scale = float(registers.sum())
        return scale * registers.mean(1).repeat(1, 3)


def test_a_readout_that_rounds_has_no_formula() -> None:
    spec = specified(Floors)
    assert (spec.cond_dim, spec.formula, spec.conditions) == (48, UNKNOWN, ("D >= 4",))


def test_sizes_that_only_the_forward_refuses_are_conditions_too() -> None:
    spec = specified(FailsLate)
    assert (spec.formula, spec.conditions) == ("D", ("8 divides D",))


def test_a_formula_without_a_meta_forward_is_fitted_to_out_dim() -> None:
    spec = specified(NoMetaForward)
    assert not spec.measured
    assert (spec.formula, spec.conditions) == ("3*D", ())


def test_a_width_of_zero_is_refused() -> None:
    with pytest.raises(SpecError, match=r"strategy 'x': expected a cond_dim of at least 1, got 0"):
        specified(lambda hidden_dim, keep: Keeps(keep), keep=0)


class Keeps(nn.Module):
    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, registers: Tensor) -> Tensor:
        return registers.mean(1)[:, : self.keep]
