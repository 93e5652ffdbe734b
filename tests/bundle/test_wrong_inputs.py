"""The inputs that every program must refuse, and the checks that refuse them."""

import json

import pytest
import torch
from support.good_manifests import BASES

import regplug
from regplug.bundle.io_signature import plain_inputs
from regplug.bundle.program_inputs import InputChecks
from regplug.bundle.wrong_inputs import wrong_inputs
from regplug.format.manifest_rules import parse_manifest


def manifest(base):
    return parse_manifest("m", json.dumps(BASES[base]()).encode())


def of_first(*rows):
    """Expected shapes of a first input in float32; a dtype may follow."""
    return {name: (0, shape, *(dtype or [torch.float32])) for name, shape, *dtype in rows}


def of_more(place, name, width, dtype, wrong):
    """Expected shapes of a further input for two samples."""
    found = {
        "wrong width": ((2, width + 1), dtype),
        "wrong batch": ((3, width), dtype),
        "wrong rank": ((2, width, 1), dtype),
        "wrong dtype": ((2, width), wrong),
    }
    return {f"{name}: {what}": (place, *expected) for what, expected in found.items()}


WRONG = {
    "readout": of_first(
        ("wrong R", (2, 3, 8)),
        ("wrong R, more", (2, 5, 8)),
        ("wrong D", (2, 4, 9)),
        ("wrong rank", (4, 8)),
        ("wrong dtype", (2, 4, 8), torch.float64),
    ),
    "conditioner": of_first(
        ("too few tokens", (2, 4, 8)),
        ("wrong D", (2, 5, 9)),
        ("wrong rank", (5, 8)),
        ("wrong dtype", (2, 5, 8), torch.float64),
    ),
    "images": of_first(
        ("wrong C", (2, 2, 8, 8)),
        ("wrong C, more", (2, 4, 8, 8)),
        ("wrong H", (2, 3, 9, 8)),
        ("wrong W", (2, 3, 8, 9)),
        ("wrong rank", (3, 8, 8)),
        ("wrong dtype", (2, 3, 8, 8), torch.float64),
    ),
    "join": {
        **of_first(
            ("too few tokens", (2, 1, 8)),
            ("wrong D", (2, 2, 9)),
            ("wrong rank", (2, 8)),
            ("wrong dtype", (2, 2, 8), torch.float64),
        ),
        **of_more(1, "mask", 2, torch.bool, torch.uint8),
        "mask: no token": (1, (2, 2), torch.bool),
        **of_more(2, "state", 7, torch.float32, torch.float64),
    },
}


@pytest.mark.parametrize("base", WRONG)
def test_each_wrong_input_is_wrong_in_one_thing_and_refused(base):
    wanted, record = WRONG[base], manifest(base)
    good = plain_inputs(record.inputs, 2, record.input.min_tokens or int(record.input.shape[1]))
    checks = InputChecks("p", record)
    checks.checked(good)
    found = list(wrong_inputs(record))
    assert [name for name, _ in found] == [*wanted, *(["one input alone"] if len(good) > 1 else [])]
    for name, given in found:
        with pytest.raises(regplug.ShapeError):
            checks.checked(given)
        if name == "one input alone":
            assert [one.shape for one in given] == [good[0].shape]
            continue
        place, shape, dtype = wanted[name]
        assert (given[place].shape, given[place].dtype) == (shape, dtype)
        same = [one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(given, good, strict=True)]
        assert same == [index != place for index in range(len(good))]


def test_float64_is_given_float32():
    text = json.dumps(BASES["join"]()).replace("float32", "float64")
    wrong = dict(wrong_inputs(parse_manifest("m", text.encode())))
    assert wrong["wrong dtype"][0].dtype == wrong["state: wrong dtype"][2].dtype == torch.float32


@pytest.fixture
def join():
    return InputChecks("p", manifest("join"))


def inputs(batch=2, length=4):
    return torch.ones(batch, length, 8), torch.ones(batch, length, dtype=torch.bool), torch.ones(batch, 7)


REFUSED = {
    "tokens of rank 2": (lambda t, m, v: (t[0], m, v), "expected tokens [B, T, 8], got [4, 8]."),
    "another width": (lambda t, m, v: (t[..., :7], m, v), "expected tokens [B, T, 8], got [2, 4, 7]."),
    "an empty batch": (
        lambda t, m, v: (t[:0], m[:0], v[:0]),
        "expected tokens [B, T, 8] with B >= 1, got [0, 4, 8].",
    ),
    "one token": (lambda t, m, v: (t[:, :1], m, v), "expected tokens [B, T, 8] with T >= 2, got [2, 1, 8]."),
    "float64": (lambda t, m, v: (t.double(), m, v), "expected dtype float32, got float64."),
    "tokens elsewhere": (lambda t, m, v: (t.to("meta"), m, v), "expected device cpu, got meta."),
    "sparse tokens": (lambda t, m, v: (t.to_sparse(), m, v), "expected a dense tensor, got another layout."),
    "a list": (lambda t, m, v: ([1.0], m, v), "expected a tensor, got list."),
    "a longer mask": (
        lambda t, m, v: (t, torch.ones(2, 5, dtype=torch.bool), v),
        "expected mask [B, T] with B=2 and T=4, got [2, 5].",
    ),
    "bytes": (lambda t, m, v: (t, m.byte(), v), "mask: expected dtype bool, got uint8."),
    "a sparse mask": (lambda t, m, v: (t, m.to_sparse(), v), "mask: expected a dense tensor, got another layout."),
    "a wider vector": (lambda t, m, v: (t, m, torch.ones(2, 8)), "expected state [B, 7] with B=2, got [2, 8]."),
    "half": (lambda t, m, v: (t, m, v.half()), "state: expected dtype float32, got float16."),
    "no token": (
        lambda t, m, v: (t, m & False, v),
        "mask: expected a token of 'mean' that counts in every sample, got none in sample 0.",
    ),
    "two inputs": (lambda t, m, v: (t, m), "expected inputs [tokens, mask, state], got [tokens, mask]."),
    "five inputs": (
        lambda t, m, v: (t, m, v, v, v),
        "expected inputs [tokens, mask, state], got [tokens, mask, state, another, another].",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_one_line(join, case):
    change, message = REFUSED[case]
    with pytest.raises(regplug.ShapeError) as error:
        join.checked(change(*inputs()))
    assert str(error.value) == f"p: {message}"


class Named(torch.Tensor):
    """A subclass without behaviour of its own."""


def test_inputs_that_fit_are_given_back_as_plain_tensors(join):
    given = inputs()
    assert all(one is same for one, same in zip(join.checked(given), given, strict=True))
    checked = join.checked([one.as_subclass(Named) for one in given])
    assert [type(one) for one in checked] == [torch.Tensor] * 3
    assert all(torch.equal(one, same) for one, same in zip(checked, given, strict=True))
    join.checked(inputs(1, 2))


def test_mask_and_vectors_are_put_in_the_manifests_order(join):
    _, mask, state = inputs()
    ordered = join.in_order(mask, {"state": state})
    assert ordered[0] is mask
    assert ordered[1] is state
    for given, got in (
        ((None, {"state": state}), "tokens, state"),
        ((mask, {}), "tokens, mask"),
        ((mask, {"state": state, 7: state}), "tokens, mask, state, 7"),
        ((mask, {"goal": state}), "tokens, mask, goal"),
    ):
        with pytest.raises(regplug.ShapeError) as error:
            join.in_order(*given)
        assert str(error.value) == f"p: expected inputs [tokens, mask, state], got [{got}]."
    with pytest.raises(regplug.ShapeError) as error:
        join.in_order(mask, [state])
    assert str(error.value) == "p: vectors: expected a tensor by each name, got list."


def test_a_bundle_with_a_mask_alone_takes_two_inputs():
    checks = InputChecks("p", manifest("any_count"))
    tokens, mask, state = inputs()
    assert len(checks.checked([tokens, mask])) == 2
    for given, got in (([tokens], "tokens"), ([tokens, mask, state], "tokens, mask, another")):
        with pytest.raises(regplug.ShapeError) as error:
            checks.checked(given)
        assert str(error.value) == f"p: expected inputs [tokens, mask], got [{got}]."


def test_a_bundle_with_one_input_takes_nothing_more():
    checks = InputChecks("p", manifest("readout"))
    given = torch.ones(2, 4, 8)
    assert checks.in_order(None, {}) == []
    assert checks.checked([given]) == (given,)
    with pytest.raises(regplug.ShapeError, match=r"expected inputs \[registers\], got \[registers, mask\]"):
        checks.in_order(given, {})
