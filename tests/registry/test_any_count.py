"""A readout of any number of tokens: which strategies take it, its width, its layout, and the command line."""

from __future__ import annotations

import json
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.commands import run_command
from support.strategies import EVERY, D
from torch import Tensor, nn

import regplug
from regplug import ReadoutEntry, ReadoutSpec, SelectRegisters, ShapeError, SpecError, TokenGroup, TokenLayout
from regplug.registry.spec import specify, specify_unmeasured

ANY = [
    "regplug:mean",
    "regplug:gated-abmil",
    "regplug:attention",
    "regplug-zoo:sum",
    "regplug-zoo:max",
    "regplug-zoo:avgmax",
    "regplug-zoo:mean-std",
    "regplug-zoo:first-token",
    "regplug-zoo:last-token",
    "regplug-zoo:mean-sqrt-len",
    "regplug-zoo:weighted-mean",
    "regplug-zoo:gem",
    "regplug-zoo:abmil",
    "regplug-zoo:simpool",
    "regplug-zoo:class-attention",
    "regplug-zoo:pma",
    "regplug-zoo:efficient-probing",
]


def resolve(strategy: str) -> ReadoutSpec:
    return regplug.resolve(strategy, num_registers=None, hidden_dim=D, **EVERY[strategy][0])  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", EVERY)
def test_strategies_without_a_weight_or_place_for_each_register_take_any_number_and_others_refuse(
    strategy: str,
) -> None:
    if strategy not in ANY:
        with pytest.raises(SpecError) as caught:
            resolve(strategy)
        bare = "compress-concat" if strategy == "regplug:join" else strategy.partition(":")[2]  # a part's
        assert str(caught.value).endswith(
            f"strategy {bare!r}: num_registers: expected a fixed number of registers, got None."
        )
        return
    spec = resolve(strategy)
    fixed = regplug.resolve(strategy, num_registers=4, hidden_dim=D, **EVERY[strategy][0])  # type: ignore[arg-type]
    assert (spec.num_registers, spec.cond_dim, spec.formula) == (None, fixed.cond_dim, fixed.formula)
    assert "R" not in spec.formula
    assert spec != fixed
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert json.loads(json.dumps(spec.as_dict()))["num_registers"] is None
    readout = spec.build()
    for count in (1, 2, 9):
        assert readout(torch.zeros(2, count, D)).shape == (2, spec.cond_dim)


@pytest.mark.parametrize("strategy", ANY)
def test_a_readout_of_any_number_refuses_other_shapes_and_no_tokens(strategy: str) -> None:
    readout = resolve(strategy).build()
    for run in (readout, torch.jit.script(readout)):
        for shape in ((2, 0, D), (2, 3, D + 1), (3, D), (2, 3, D, 1)):
            with pytest.raises(
                (ShapeError, torch.jit.Error), match=rf"expected registers \[B, N, {D}\] with N >= 1, got \[{shape[0]},"
            ):
                run(torch.zeros(shape))


@pytest.mark.parametrize("strategy", ANY)
def test_the_flops_of_any_number_are_refused(strategy: str) -> None:
    with pytest.raises(SpecError, match="flop_count: expected a fixed number of registers, got None"):
        resolve(strategy).build().flop_count(D)  # type: ignore[operator]


# ---- other classes


class Mean(nn.Module):
    """Does not name the number of registers."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()

    def forward(self, registers: Tensor) -> Tensor:
        return registers.mean(1)


class Optional(Mean):
    def __init__(self, tokens: int | None, hidden_dim: int) -> None:
        super().__init__(hidden_dim)
        self.tokens = tokens


class ByDefault(Mean):
    def __init__(self, hidden_dim: int, num_registers: int = None) -> None:  # type: ignore[assignment]  # noqa: RUF013
        super().__init__(hidden_dim)


class Unannotated(Mean):
    def __init__(self, num_registers, hidden_dim) -> None:  # type: ignore[no-untyped-def]
        super().__init__(hidden_dim)


class Flat(Mean):
    def forward(self, registers: Tensor) -> Tensor:
        return registers.flatten(1)


class OnlyFour(Mean):
    def forward(self, registers: Tensor) -> Tensor:
        return (registers.transpose(1, 2) @ registers.new_ones(4, 1)).squeeze(2)


class NoMeta(Mean):
    out_dim = 6

    def forward(self, registers: Tensor) -> Tensor:
        return registers[registers.sum((1, 2)) == 0].mean(1)


class NoMetaFlat(NoMeta):
    def forward(self, registers: Tensor) -> Tensor:
        return registers[registers.sum((1, 2)) == 0].flatten(1)


def spec_of(build: Any, **sizes: str) -> ReadoutSpec:
    return specify(ReadoutEntry("mine", build, sizes=sizes), None, 6, {})


@pytest.mark.parametrize(
    ("build", "words"), [(Mean, {}), (Optional, {"tokens": "num_registers"}), (ByDefault, {}), (NoMeta, {})]
)
def test_a_class_takes_any_number_if_its_hint_allows_none_or_it_does_not_name_it(
    build: Any, words: dict[str, str]
) -> None:
    spec = spec_of(build, **words)
    assert spec.cond_dim == 6
    assert spec.build()(torch.zeros(2, 5, 6)).shape == (2, 6)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (Unannotated, "num_registers: expected a fixed number of registers, got None."),
        (Flat, "expected a fixed number, as the width depends on the number of tokens (6 for 1, 18 for 3), got None."),
        (OnlyFour, "expected an integer attribute out_dim or a forward that runs on the meta device, got neither"),
    ],
)
def test_a_class_that_needs_a_fixed_number_is_refused(build: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(build)
    assert str(caught.value).startswith("strategy 'mine': ")
    assert words in str(caught.value)


def test_a_width_that_depends_on_the_number_is_found_when_the_readout_is_built_if_not_before() -> None:
    with pytest.raises(SpecError, match=r"depends on the number of tokens \(6 for 1, 18 for 3\)"):
        spec_of(NoMetaFlat).build()


def width(hidden_dim: int) -> int:
    return hidden_dim


def test_an_entry_with_a_width_of_its_own_is_compared_with_the_class_when_it_is_built() -> None:
    spec = specify_unmeasured(ReadoutEntry("mine", Unannotated, cond_dim=width), None, 6, {})
    with pytest.raises(SpecError, match="num_registers: expected a fixed number of registers, got None"):
        spec.build()


class Masked(Mean):
    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        return registers.mean(1)


@pytest.mark.parametrize(
    ("build", "wanted"),
    [(Mean, False), (Masked, True), (lambda hidden_dim: Masked(hidden_dim), True), (partial(Mean), False)],
)
def test_a_spec_says_whether_its_readout_takes_a_mask(build: Any, wanted: bool) -> None:
    assert spec_of(build).takes_mask is wanted


# ---- layouts


def test_a_layout_without_a_number_has_all_tokens_from_its_start() -> None:
    layout = TokenLayout(num_registers=None, hidden_dim=D, start=5)
    assert (layout.min_tokens, layout.indices) == (6, None)
    assert layout.positions(9) == (5, 6, 7, 8)
    with pytest.raises(ShapeError, match="expected at least 6 tokens, got 5"):
        layout.positions(5)
    assert TokenLayout.from_dict(json.loads(json.dumps(layout.as_dict()))) == layout
    assert pickle.loads(pickle.dumps(layout)) == layout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"start": -2}, "start: expected 0 or more with num_registers=None, got -2; for the last 2 tokens, use num_"),
        ({"indices": (1, 2), "num_tokens": 4}, "num_registers: expected an integer with indices, got None"),
        ({"start": 3, "num_tokens": 3}, "num_tokens: expected at least 4, got 3"),
        ({}, "expected either start or indices"),
    ],
)
def test_a_layout_without_a_number_that_makes_no_sense_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        TokenLayout(num_registers=None, hidden_dim=D, **arguments)
    assert words in str(caught.value)


@given(start=st.integers(0, 4), count=st.integers(1, 5))
def test_all_tokens_from_a_start_are_selected_for_any_length(start: int, count: int) -> None:
    layout = TokenLayout(num_registers=None, hidden_dim=2, start=start)
    tokens = torch.randn(3, start + count, 2)
    for select in (SelectRegisters(layout), torch.jit.script(SelectRegisters(layout))):
        got = select(tokens)
        assert torch.equal(got, tokens[:, list(layout.positions(start + count))])
        assert got.is_contiguous()
        with pytest.raises((ShapeError, torch.jit.Error), match=rf"with T >= {start + 1}, got \[3, {start}, 2\]"):
            select(tokens[:, :start])


# torch.export compiles a slice of one token apart from a slice of several: torch.export.Dim("tokens", min=2) is refused
@pytest.mark.parametrize(("start", "shortest"), [(0, 1), (1, 3)])
def test_a_selection_of_any_length_is_exported_once_for_all_lengths(start: int, shortest: int) -> None:
    select = SelectRegisters(TokenLayout(num_registers=None, hidden_dim=2, start=start))
    sizes = {0: torch.export.Dim("batch", min=0), 1: torch.export.Dim("tokens", min=shortest)}
    graph = torch.export.export(select, (torch.randn(2, 5, 2),), dynamic_shapes=(sizes,)).module()
    for batch, length in ((0, 3), (1, shortest), (4, shortest), (4, 9)):
        tokens = torch.randn(batch, length, 2)
        assert torch.equal(graph(tokens), tokens[:, start:])


GROUPS = (TokenGroup("patches", 5), TokenGroup("middle", 5, -1), TokenGroup("last", -2))


def test_a_group_up_to_the_end_needs_no_length() -> None:
    layout = TokenLayout(num_registers=4, hidden_dim=D, start=1, groups=GROUPS)
    for name, start in (("tokens", 0), ("patches", 5)):
        read = layout.for_group(name)
        assert read == TokenLayout(num_registers=None, hidden_dim=D, start=start)
        assert layout.reads(read)
        assert read.positions(9) == layout.for_group(name, 9).positions(9)
    assert not layout.reads(TokenLayout(num_registers=None, hidden_dim=D, start=4))
    assert not layout.reads(TokenLayout(num_registers=None, hidden_dim=D + 1, start=5))
    assert layout.for_group("last").num_registers == 2
    with pytest.raises(SpecError, match="group 'middle': expected num_tokens, as it ends before the end"):
        layout.for_group("middle")


# ---- the command line


def test_the_command_line_says_any() -> None:
    sizes = ["--num-registers", "any", "--hidden-dim", "24"]
    assert run_command("cond-dim", "mean", *sizes) == (0, "24\n", "")
    _, described, _ = run_command("info", "mean", *sizes)
    assert "num_registers: any\n" in described
    assert "formula: D\n" in described
    assert "flops" not in described
    refused = "error: strategy 'concat': num_registers: expected a fixed number of registers, got None.\n"
    assert run_command("cond-dim", "concat", *sizes) == (2, "", refused)
    _, _, wrong = run_command("cond-dim", "mean", "--num-registers", "some", "--hidden-dim", "24")
    assert "'--num-registers': expected an integer or any, got 'some'." in wrong
