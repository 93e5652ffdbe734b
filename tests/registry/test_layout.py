"""Where the registers are: each rule against a simple reference, layouts of real backbones, errors."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regplug import ShapeError, SpecError, TokenGroup, TokenLayout

SIZES = {"num_registers": 3, "hidden_dim": 8}


# ---- every rule against a sequence of marks

counts = st.integers(1, 9)


@given(num=counts, before=st.integers(0, 20), after=st.integers(0, 20))
def test_a_layout_with_a_start_points_at_the_registers(num: int, before: int, after: int) -> None:
    marks = ["patch"] * before + ["register"] * num + ["patch"] * after
    wanted = tuple(at for at, mark in enumerate(marks) if mark == "register")
    front = TokenLayout(num_registers=num, hidden_dim=8, start=before)
    back = TokenLayout(num_registers=num, hidden_dim=8, start=-num - after)
    each = TokenLayout(num_registers=num, hidden_dim=8, indices=wanted, num_tokens=len(marks))
    assert front.positions(len(marks)) == back.positions(len(marks)) == each.positions(len(marks)) == wanted
    assert front.min_tokens == before + num
    assert back.min_tokens == num + after
    assert each.min_tokens == before + num


def mamba_reg_positions(num_patches: int, num_registers: int) -> list[int]:
    """Mamba-Reg puts one register behind each run of L patches, and the patches that are left at the end."""
    run = num_patches // (num_registers + 1)
    marks: list[str] = []
    for _ in range(num_registers):
        marks += ["patch"] * run + ["register"]
    marks += ["patch"] * (num_patches - run * num_registers)
    return [at for at, mark in enumerate(marks) if mark == "register"]


@given(num=counts, patches=st.integers(1, 300))
def test_interleaved_registers_stand_where_mamba_reg_puts_them(num: int, patches: int) -> None:
    layout = TokenLayout.interleaved(num_registers=num, hidden_dim=8, num_patches=patches)
    run = patches // (num + 1)
    formula = torch.arange(run, run * (num + 1) + num, run + 1).tolist()
    assert list(layout.indices) == formula == mamba_reg_positions(patches, num)
    assert layout.num_tokens == patches + num


@pytest.mark.parametrize(
    ("patches", "num", "positions"),
    [(196, 12, (15, 31, 47, 63, 79, 95, 111, 127, 143, 159, 175, 191)), (9, 2, (3, 7)), (2, 4, (0, 1, 2, 3))],
)
def test_interleaved_positions_by_hand(patches: int, num: int, positions: tuple[int, ...]) -> None:
    assert TokenLayout.interleaved(num_registers=num, hidden_dim=8, num_patches=patches).indices == positions


@st.composite
def layouts(draw: st.DrawFn) -> TokenLayout:
    """Any layout there is."""
    num = draw(counts)
    common = {
        "num_registers": num,
        "hidden_dim": draw(counts),
        "normalized": draw(st.sampled_from([None, True, False])),
    }
    rule = draw(st.sampled_from(["front", "back", "explicit", "interleaved"]))
    if rule == "interleaved":
        return TokenLayout.interleaved(**common, num_patches=draw(st.integers(1, 200)))
    if rule == "explicit":
        indices = sorted(draw(st.sets(st.integers(0, 60), min_size=num, max_size=num)))
        return TokenLayout(**common, indices=tuple(indices), num_tokens=indices[-1] + draw(counts))
    start = draw(st.integers(0, 30)) if rule == "front" else draw(st.integers(-40, -num))
    shortest = start + num if start >= 0 else -start
    length = draw(st.none() | st.integers(shortest, shortest + 50))
    return TokenLayout(**common, start=start, num_tokens=length)


@given(layout=layouts(), more=st.integers(0, 40))
def test_positions_are_increasing_unique_r_of_them_and_inside(layout: TokenLayout, more: int) -> None:
    num_tokens = layout.num_tokens or layout.min_tokens + more
    positions = layout.positions(num_tokens)
    assert list(positions) == sorted(set(positions))
    assert len(positions) == layout.num_registers
    assert 0 <= positions[0] <= positions[-1] < num_tokens


@given(layout=layouts())
def test_a_layout_comes_back_from_its_json(layout: TokenLayout) -> None:
    again = TokenLayout.from_dict(json.loads(json.dumps(layout.as_dict())))
    assert again == layout
    assert hash(again) == hash(layout)
    assert again.as_dict() == layout.as_dict()


@given(layout=layouts(), other=layouts())
def test_layouts_are_equal_exactly_when_their_fields_are(layout: TokenLayout, other: TokenLayout) -> None:
    assert (layout == other) == (layout.as_dict() == other.as_dict())


@given(layout=layouts(), missing=st.integers(1, 5))
def test_a_sequence_that_is_too_short_is_refused_with_both_lengths(layout: TokenLayout, missing: int) -> None:
    wanted = layout.num_tokens or layout.min_tokens
    with pytest.raises(
        ShapeError, match=rf"^TokenLayout: expected (at least )?{wanted} tokens, got {wanted - missing}"
    ):
        layout.positions(wanted - missing)


# ---- real backbones


@pytest.mark.parametrize(
    ("layout", "num_tokens", "positions"),
    [
        # [CLS, REG x 4, patches]: DINOv2 with registers
        (TokenLayout(num_registers=4, hidden_dim=384, start=1), 1 + 4 + 256, (1, 2, 3, 4)),
        # [REG x 4, patches]: without a class token
        (TokenLayout(num_registers=4, hidden_dim=384, start=0), 4 + 196, (0, 1, 2, 3)),
        # [CLS, DIST, patches]: distilled DeiT has two prefix tokens and neither is a register; here with two registers
        (TokenLayout(num_registers=2, hidden_dim=384, start=2), 2 + 2 + 196, (2, 3)),
        # [CLS x 3, REG x 7, patches]: RADIO
        (TokenLayout(num_registers=7, hidden_dim=1280, start=3), 10 + 196, tuple(range(3, 10))),
        # [patches, REG x 4]: SimpleViT
        (TokenLayout(num_registers=4, hidden_dim=384, start=-4), 196 + 4, (196, 197, 198, 199)),
        # [patches, REG x 4, PAD x 8]: nvSubquadratic pads to a multiple
        (TokenLayout(num_registers=4, hidden_dim=384, start=-12), 196 + 4 + 8, (196, 197, 198, 199)),
        # [patches, CLS, REG x 3, PAD x 2]
        (TokenLayout(num_registers=3, hidden_dim=384, start=197, num_tokens=202), 202, (197, 198, 199)),
    ],
)
def test_the_layouts_of_real_backbones(layout: TokenLayout, num_tokens: int, positions: tuple[int, ...]) -> None:
    assert layout.positions(num_tokens) == positions


# ---- refusals

REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"num_registers": 0, "start": 0}, "num_registers: expected a positive integer, got 0."),
    ({"num_registers": True, "start": 0}, "num_registers: expected a positive integer, got True."),
    ({"hidden_dim": -8, "start": 0}, "hidden_dim: expected a positive integer, got -8."),
    ({"hidden_dim": 8.0, "start": 0}, "hidden_dim: expected a positive integer, got 8.0."),
    ({"start": 0, "num_tokens": 0}, "num_tokens: expected a positive integer, got 0."),
    ({"start": 0, "num_tokens": False}, "num_tokens: expected a positive integer, got False."),
    ({"start": 0, "normalized": "yes"}, "normalized: expected True, False or None, got 'yes'."),
    ({"start": 0, "normalized": 1}, "normalized: expected True, False or None, got 1."),
    ({}, "expected either start or indices, got start=None, indices=None."),
    ({"start": 0, "indices": (0, 1, 2)}, "expected either start or indices, got start=0, indices=(0, 1, 2)."),
    ({"start": "1"}, "start: expected an integer, got '1'."),
    ({"start": True}, "start: expected an integer, got True."),
    ({"start": -2}, "start: expected at most -3 for 3 registers counted from the end, got -2."),
    ({"start": 5, "num_tokens": 7}, "num_tokens: expected at least 8, got 7."),
    ({"start": -9, "num_tokens": 8}, "num_tokens: expected at least 9, got 8."),
    ({"indices": (0, 4, 9), "num_tokens": 9}, "num_tokens: expected at least 10, got 9."),
    ({"indices": (0, 4, 9)}, "num_tokens: expected an integer with indices, got None."),
    ({"indices": "012", "num_tokens": 9}, "indices: expected integers, got '012'."),
    ({"indices": 7, "num_tokens": 9}, "indices: expected integers, got 7."),
    ({"indices": (0, 1), "num_tokens": 9}, "indices: expected 3 positions (num_registers), got 2."),
    ({"indices": (0, 1, 1), "num_tokens": 9}, "indices: expected increasing positions, got [0, 1, 1]."),
    ({"indices": (2, 1, 0), "num_tokens": 9}, "indices: expected increasing positions, got [2, 1, 0]."),
    ({"indices": (-1, 1, 2), "num_tokens": 9}, "indices: expected integers from 0 up, got [-1, 1, 2]."),
    ({"indices": (False, 1, 2), "num_tokens": 9}, "indices: expected integers from 0 up, got [False, 1, 2]."),
    ({"indices": (0.0, 1, 2), "num_tokens": 9}, "indices: expected integers from 0 up, got [0.0, 1, 2]."),
]


@pytest.mark.parametrize(("values", "text"), REFUSALS, ids=lambda value: str(value))
def test_a_layout_that_cannot_be_is_refused_by_field(values: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError) as caught:
        TokenLayout(**SIZES | values)
    assert str(caught.value) == f"TokenLayout: {text}"
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("num", "patches"), [(0, 9), (2, 0), (2, True), (2.0, 9), (2, None)])
def test_interleaving_refuses_what_is_no_positive_integer(num: Any, patches: Any) -> None:
    with pytest.raises(
        SpecError, match=r"^TokenLayout.interleaved: expected positive integers num_registers and num_p"
    ):
        TokenLayout.interleaved(num_registers=num, hidden_dim=8, num_patches=patches)


def test_a_fixed_length_refuses_a_longer_sequence_too() -> None:
    layout = TokenLayout(**SIZES, start=1, num_tokens=10)
    assert layout.positions(10) == (1, 2, 3)
    with pytest.raises(ShapeError, match=r"^TokenLayout: expected 10 tokens, got 11\.$"):
        layout.positions(11)


@pytest.mark.parametrize(
    "values", [{**SIZES, "start": 0, "begin": 1}, {"start": 0, "hidden_dim": 8}, {}], ids=["unknown", "missing", "none"]
)
def test_a_dictionary_with_other_fields_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"^TokenLayout: expected the fields of a layout, got \["):
        TokenLayout.from_dict(values)


def test_a_layout_is_frozen_and_its_indices_are_a_tuple() -> None:
    indices = [0, 4, 9]
    layout = TokenLayout(**SIZES, indices=indices, num_tokens=10)
    indices.append(10)
    assert layout.indices == (0, 4, 9)
    with pytest.raises(FrozenInstanceError):
        layout.num_registers = 4


# ---- groups

ENDS = st.integers(-9, 9)


@given(start=ENDS, stop=st.none() | ENDS, num_tokens=st.integers(1, 30))
def test_a_group_has_the_tokens_of_its_slice(start: int, stop: int | None, num_tokens: int) -> None:
    try:
        group = TokenGroup("patches", start, stop)
    except SpecError:
        assert [*range(30)][start:stop] == []
        return
    wanted = tuple(range(num_tokens)[start:stop])
    assert group.positions(num_tokens) == wanted
    layout = TokenLayout(**SIZES, start=0, groups=(group,))
    if num_tokens >= 20 and wanted:  # long enough for both ends
        read = layout.for_group("patches", num_tokens)
        assert read.positions(num_tokens) == wanted
        assert group.num_tokens in (None, len(wanted))
        assert layout.reads(read)
        assert layout.reads(layout)
        assert not layout.reads(TokenLayout(**SIZES, start=25))


def test_layouts_with_other_groups_are_equal() -> None:
    one = TokenLayout(**SIZES, start=1, groups=[TokenGroup("cls", 0, 1)])  # type: ignore[arg-type]
    assert one == TokenLayout(**SIZES, start=1)
    assert hash(one) == hash(TokenLayout(**SIZES, start=1))
    assert one.groups == (TokenGroup("cls", 0, 1),)
    assert one.for_group("registers").groups == ()
    assert TokenLayout.from_dict(one.as_dict()) == one


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TokenGroup("Patches"), "name: expected lower-case letters, digits and underscores, got 'Patches'"),
        (lambda: TokenGroup("registers", 0, 3), "name: expected another word than 'registers'"),
        (lambda: TokenGroup("cls", 1, 1), "'cls': stop: expected a position after start=1, got 1"),
        (lambda: TokenGroup("cls", -1, -2), "'cls': stop: expected a position after start=-1, got -2"),
        (lambda: TokenGroup("cls", -4, 0), "'cls': stop: expected a position after start=-4, got 0"),
        (lambda: TokenGroup("class"), "name: expected a word that is none of Python's own, got 'class'"),
        (lambda: TokenLayout(**SIZES, start=1).for_group("tokens", "9"), "num_tokens: expected a positive integer"),
        (lambda: TokenGroup("cls", True), "'cls': start: expected an integer, got True"),
        (lambda: TokenGroup("cls", 0, 1.0), "'cls': stop: expected an integer, got 1.0"),  # type: ignore[arg-type]
        (lambda: TokenLayout(**SIZES, start=1, groups=("cls",)), "groups: expected each to be a TokenGroup"),
        (lambda: TokenLayout(**SIZES, start=1, groups=5), "groups: expected each to be a TokenGroup, got (5,)"),
        (
            lambda: TokenLayout(**SIZES, start=1, groups=(TokenGroup("cls", 0, 1), TokenGroup("cls", 9))),
            "groups: expected each name once, got 'cls' twice",
        ),
        (
            lambda: TokenLayout(**SIZES, start=1, groups=(TokenGroup("patches", 4, -1),)).for_group("patches"),
            "group 'patches': expected num_tokens, as it ends before the end of the sequence and its length is free, "
            "got None; pass the number of tokens, as in for_group('patches', 201)",
        ),
    ],
)
def test_a_wrong_group_is_refused(make: Any, words: str) -> None:
    with pytest.raises(SpecError) as error:
        make()
    assert words in str(error.value)


@pytest.mark.parametrize("group", ["registers", "cls", "patches", "tokens"])
def test_a_group_of_a_sequence_that_the_layout_does_not_fit_is_refused(group: str) -> None:
    groups = (TokenGroup("cls", 0, 1), TokenGroup("patches", 4))
    with pytest.raises(ShapeError, match="TokenLayout: expected at least 4 tokens, got 3"):
        TokenLayout(**SIZES, start=1, groups=groups).for_group(group, 3)
    with pytest.raises(ShapeError, match="TokenLayout: expected 20 tokens, got 30"):
        TokenLayout(**SIZES, start=1, num_tokens=20, groups=groups).for_group(group, 30)


def test_a_group_without_tokens_in_a_short_sequence_is_refused() -> None:
    layout = TokenLayout(**SIZES, start=1, groups=(TokenGroup("patches", 4),))
    with pytest.raises(ShapeError, match="group 'patches': expected tokens of it, got none in 4 tokens"):
        layout.for_group("patches", 4)
    assert not layout.reads(TokenLayout(**SIZES, start=0, num_tokens=4))
