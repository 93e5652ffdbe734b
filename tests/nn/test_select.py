"""Selecting registers is fancy indexing with the layout's positions, in every way to run it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regplug import SelectRegisters, ShapeError, TokenLayout

D = 3
LAYOUTS = {
    "front": TokenLayout(num_registers=4, hidden_dim=D, start=1),
    "back": TokenLayout(num_registers=4, hidden_dim=D, start=-4),
    "back with padding": TokenLayout(num_registers=2, hidden_dim=D, start=-5),
    "fixed length": TokenLayout(num_registers=4, hidden_dim=D, start=2, num_tokens=11),
    "evenly spaced": TokenLayout.interleaved(num_registers=3, hidden_dim=D, num_patches=12),
    "unevenly spaced": TokenLayout(num_registers=3, hidden_dim=D, indices=(0, 1, 7), num_tokens=9),
    "one register": TokenLayout(num_registers=1, hidden_dim=D, indices=(5,), num_tokens=9),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def tokens_for(layout: TokenLayout, batch: int = 2, more: int = 3) -> Tensor:
    return torch.randn(batch, layout.num_tokens or layout.min_tokens + more, layout.hidden_dim)


def expected(layout: TokenLayout, tokens: Tensor) -> Tensor:
    """Fancy indexing with the positions."""
    return tokens[:, list(layout.positions(tokens.shape[1]))]


def test_the_comparison_notices_another_position() -> None:
    tokens = tokens_for(LAYOUTS["front"])
    shifted = TokenLayout(num_registers=4, hidden_dim=D, start=2)
    assert torch.equal(SelectRegisters(LAYOUTS["front"])(tokens), expected(LAYOUTS["front"], tokens))
    assert not torch.equal(SelectRegisters(shifted)(tokens), expected(LAYOUTS["front"], tokens))


@st.composite
def layouts(draw: st.DrawFn) -> TokenLayout:
    num = draw(st.integers(1, 6))
    sizes = {"num_registers": num, "hidden_dim": draw(st.integers(1, 4))}
    rule = draw(st.sampled_from(["start", "explicit", "interleaved"]))
    if rule == "interleaved":
        return TokenLayout.interleaved(**sizes, num_patches=draw(st.integers(1, 40)))
    if rule == "explicit":
        indices = sorted(draw(st.sets(st.integers(0, 30), min_size=num, max_size=num)))
        return TokenLayout(**sizes, indices=tuple(indices), num_tokens=indices[-1] + draw(st.integers(1, 9)))
    return TokenLayout(**sizes, start=draw(st.integers(0, 20) | st.integers(-20, -num)))


@given(layout=layouts(), batch=st.integers(0, 3), more=st.integers(0, 9))
def test_selecting_is_fancy_indexing_and_contiguous(layout: TokenLayout, batch: int, more: int) -> None:
    tokens = tokens_for(layout, batch, more)
    selected = SelectRegisters(layout)(tokens)
    assert torch.equal(selected, expected(layout, tokens))
    assert selected.shape == (batch, layout.num_registers, layout.hidden_dim)
    assert selected.is_contiguous()


@every_layout
def test_the_selection_of_strided_tokens_is_contiguous_and_a_copy(layout: TokenLayout) -> None:
    tokens = torch.randn(D, layout.num_tokens or layout.min_tokens + 2, 3).permute(2, 1, 0)
    assert not tokens.is_contiguous()
    for select in (SelectRegisters(layout), torch.jit.script(SelectRegisters(layout))):
        assert torch.equal(select(tokens), expected(layout, tokens))
        assert select(tokens).is_contiguous()


def lengths(layout: TokenLayout) -> list[int]:
    """Sequence lengths that the layout takes: one, or the shortest and some more."""
    return [layout.num_tokens] if layout.num_tokens else [layout.min_tokens + more for more in (0, 1, 2, 40)]


def check_every_size(layout: TokenLayout, run: Callable[[Tensor], Tensor], shortest: int = 0) -> None:
    for length in (one for one in lengths(layout) if one >= shortest):
        for batch in (0, 1, 2, 7):
            tokens = torch.randn(batch, length, D)
            assert torch.equal(run(tokens), expected(layout, tokens))
            assert run(tokens).is_contiguous()


@every_layout
def test_a_scripted_selection_takes_every_batch_and_length(layout: TokenLayout) -> None:
    check_every_size(layout, torch.jit.script(SelectRegisters(layout)))


@every_layout
def test_a_compiled_selection_takes_every_batch_and_length(layout: TokenLayout) -> None:
    torch.compiler.reset()
    check_every_size(layout, torch.compile(SelectRegisters(layout), backend="eager", fullgraph=True))


@every_layout
def test_an_exported_selection_takes_every_batch_and_length(layout: TokenLayout) -> None:
    dynamic = {0: torch.export.Dim("batch", min=0)}
    # torch.export guards on whether a slice is the whole sequence, so one of registers alone needs its own export
    shortest = max(layout.min_tokens, layout.num_registers + 1)
    if layout.num_tokens is None:
        dynamic[1] = torch.export.Dim("length", min=shortest)
    exported = torch.export.export(SelectRegisters(layout), (tokens_for(layout),), dynamic_shapes=(dynamic,))
    check_every_size(layout, exported.module(), shortest)


@every_layout
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64], ids=str)
def test_the_dtype_of_the_tokens_is_kept(layout: TokenLayout, dtype: torch.dtype) -> None:
    tokens = (100 * tokens_for(layout)).to(dtype)
    selected = SelectRegisters(layout)(tokens)
    assert selected.dtype == dtype
    assert torch.equal(selected, expected(layout, tokens))


def test_gradients_reach_the_registers_and_no_other_token() -> None:
    layout = LAYOUTS["unevenly spaced"]
    tokens = tokens_for(layout).requires_grad_()
    SelectRegisters(layout)(tokens).sum().backward()
    touched = tokens.grad.abs().sum(dim=(0, 2)).nonzero().flatten().tolist()
    assert touched == list(layout.indices)


def test_a_selection_has_no_state() -> None:
    assert SelectRegisters(LAYOUTS["unevenly spaced"]).state_dict() == {}


def refusals() -> list[tuple[str, tuple[int, ...], str]]:
    front, fixed, uneven = (LAYOUTS[name] for name in ("front", "fixed length", "unevenly spaced"))
    return [
        ("front", (2, front.min_tokens - 1, D), f"[B, T, {D}] with T >= 5, got [2, 4, {D}]"),
        ("front", (2, 9, D + 1), f"[B, T, {D}] with T >= 5, got [2, 9, {D + 1}]"),
        ("front", (9, D), f"[B, T, {D}] with T >= 5, got [9, {D}]"),
        ("front", (2, 9, D, 1), f"[B, T, {D}] with T >= 5, got [2, 9, {D}, 1]"),
        ("front", (), f"[B, T, {D}] with T >= 5, got []"),
        ("back", (2, 3, D), f"[B, T, {D}] with T >= 4, got [2, 3, {D}]"),
        ("fixed length", (2, fixed.num_tokens + 1, D), f"[B, 11, {D}], got [2, 12, {D}]"),
        ("fixed length", (2, fixed.num_tokens - 1, D), f"[B, 11, {D}], got [2, 10, {D}]"),
        ("unevenly spaced", (2, uneven.num_tokens + 1, D), f"[B, 9, {D}], got [2, 10, {D}]"),
    ]


@pytest.mark.parametrize(("name", "shape", "text"), refusals(), ids=str)
def test_other_tokens_are_refused_eager_and_scripted_with_both_shapes(
    name: str, shape: tuple[int, ...], text: str
) -> None:
    select = SelectRegisters(LAYOUTS[name])
    with pytest.raises(ShapeError) as eager:
        select(torch.zeros(shape))
    assert str(eager.value) == f"TokenLayout: expected tokens {text}."
    with pytest.raises(torch.jit.Error) as scripted:
        torch.jit.script(select)(torch.zeros(shape))
    assert f"TokenLayout: expected tokens {text}." in str(scripted.value)


def test_other_tokens_are_refused_compiled_and_exported() -> None:
    layout = LAYOUTS["front"]
    torch.compiler.reset()
    with pytest.raises(RuntimeError, match=r"TokenLayout: expected tokens \[B, T, 3\] with T >= 5"):
        torch.compile(SelectRegisters(layout), backend="eager", fullgraph=True)(torch.zeros(2, 4, D))
    dynamic = ({0: torch.export.Dim("batch", min=0), 1: torch.export.Dim("length", min=5)},)
    exported = torch.export.export(SelectRegisters(layout), (tokens_for(layout),), dynamic_shapes=dynamic).module()
    with pytest.raises(AssertionError, match=">= 5"):
        exported(torch.zeros(2, 4, D))
