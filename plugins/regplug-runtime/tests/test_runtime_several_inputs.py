"""Bundles that take a mask and vectors besides the tokens."""

from __future__ import annotations

import ctypes
import os

import numpy as np
import pytest
import torch

import regplug
import regplug_runtime
from regplug_runtime.arrays import to_tensor
from regplug_runtime.library import Tensor, _library

pytestmark = pytest.mark.compiler

RANDOM = np.random.default_rng(0)
GROUPS = (regplug.TokenGroup("cls", 0, 1), regplug.TokenGroup("patches", 5))
LAYOUT = regplug.TokenLayout(num_registers=4, hidden_dim=24, start=1, groups=GROUPS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A conditioner on a class token, patches and a vector, with a mask."""
    spec = regplug.join(cls="mean", patches="attention", state=7).resolve(LAYOUT)
    sizes = {"kernel_hidden_dim": 5, "num_film_layers": 2, "init_type": "small_random"}
    torch.manual_seed(0)
    film = regplug.pair(spec, regplug.KernelFiLMGenerator, **sizes)
    module = regplug.Conditioner(LAYOUT.for_group("tokens"), spec.build(), film)
    made = tmp_path_factory.mktemp("several") / "b"
    regplug.export(spec, module, made, backends=["aotinductor"], mask=True)
    return made


@pytest.fixture(scope="module")
def opened(folder):
    with regplug_runtime.open(folder) as one:
        yield one


def inputs(batch=3, length=9):
    mask = RANDOM.random((batch, length)) < 0.5
    mask[:, [0, 5]] = True
    tokens = RANDOM.standard_normal((batch, length, 24), np.float32)
    tokens[~mask] = np.nan
    return {"tokens": tokens, "mask": mask, "state": RANDOM.standard_normal((batch, 7), np.float32)}


def in_torch(folder, given):
    tensors = {name: torch.from_numpy(array.copy()) for name, array in given.items()}
    program = regplug.load(folder, program="aotinductor")
    return program(tensors["tokens"], mask=tensors["mask"], vectors={"state": tensors["state"]})


def refusal(opened, given):
    with pytest.raises(regplug_runtime.BundleError) as error:
        opened.run_film(given)
    return str(error.value)


def test_all_inputs_are_given_by_name_in_any_order_with_any_strides(folder, opened):
    assert [(one.name, one.dtype, one.shape) for one in opened.inputs] == [
        ("tokens", "float32", ("B", "T", 24)),
        ("mask", "bool", ("B", "T")),
        ("state", "float32", ("B", 7)),
    ]
    assert "tokens [B, T, 24], mask [B, T], state [B, 7], float32" in repr(opened)
    given = inputs()
    wanted = in_torch(folder, given)
    for one in (
        given,
        dict(reversed(given.items())),
        {name: np.asfortranarray(array) for name, array in given.items()},
    ):
        for pair, pair_wanted in zip(opened.run_film(one), wanted, strict=True):
            for made, expected in zip(pair, pair_wanted, strict=True):
                np.testing.assert_allclose(made, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mask", lambda mask: mask.astype(np.uint8)),
        ("mask", lambda mask: mask[:, :-1]),
        ("mask", lambda mask: mask[:-1]),
        ("mask", lambda mask: mask & (np.arange(9) < 5)),
        ("state", lambda state: state[:, :-1]),
        ("state", lambda state: state.astype(np.float64)),
        ("tokens", lambda tokens: tokens[:, :3]),
    ],
)
def test_a_wrong_input_is_refused_with_the_message_of_python(folder, opened, name, change):
    given = inputs()
    given[name] = change(given[name])
    with pytest.raises(regplug.ShapeError) as error:
        in_torch(folder, given)
    assert refusal(opened, given) == str(error.value)


def test_an_array_of_another_kind_is_refused_by_the_name_of_its_input(opened):
    given, begin = inputs(), "program 'aotinductor': mask: expected "
    assert (
        refusal(opened, {**given, "mask": given["mask"].tolist()})
        == f"{begin}a NumPy array, got list; use numpy.asarray."
    )
    assert refusal(opened, {**given, "mask": given["mask"].astype(complex)}) == f"{begin}dtype bool, got complex128."
    wrong = given["mask"].copy()
    wrong.view(np.uint8)[1, 2] = 3
    assert refusal(opened, {**given, "mask": wrong}) == f"{begin}bytes 0 and 1, got 3."
    deep = given["mask"].reshape(1, 1, 1, 1, 1, 1, 1, 3, 9)
    said = "program 'aotinductor': expected mask [B, T] with B=3 and T=9, got [1, 1, 1, 1, 1, 1, 1, 3, 9]."
    assert refusal(opened, {**given, "mask": deep}) == said


def test_wrong_names_are_refused(opened, bundle):
    given, said = inputs(), "program 'aotinductor': expected inputs [tokens, mask, state], got "
    assert refusal(opened, given["tokens"]) == f"{said}[tokens]."
    assert refusal(opened, {"state": given["state"], "tokens": given["tokens"]}) == f"{said}[state, tokens]."
    assert refusal(opened, {**given, "a\n": given["state"], 5: 1}) == f"{said}[tokens, mask, state, a\\n, 5]."
    with regplug_runtime.open(bundle) as one:
        registers = RANDOM.standard_normal((2, 4, 24), np.float32)
        np.testing.assert_array_equal(one.run({"registers": registers}), one.run(registers))
        with pytest.raises(regplug_runtime.BundleError) as error:
            one.run({"tokens": registers})
        assert str(error.value) == "program 'aotinductor': expected inputs [registers], got [tokens]."


@pytest.mark.parametrize(
    ("names", "count", "said"),
    [
        ((b"tokens", None, b"state"), 3, "regplug: name: expected a pointer, got null."),
        ((None, b"mask", b"state"), 1, "NAMES[tokens]."),
        ((b"tokens", b"mask", b"mask"), 3, "NAMES[tokens, mask, mask]."),
        ((b"tokens", b"mask", b"state"), 2, "NAMES[tokens, mask]."),
        ((b"tokens", b"mask", b"state"), 0, "NAMES[]."),
        ((b"tokens", b"mask", b"state"), 3, ""),
    ],
)
def test_names_that_only_c_can_give_are_refused(folder, names, count, said):
    handle = _library.regplug_open(os.fsencode(folder), None, 0)
    kept = [to_tensor(array, "", name=name) for name, array in zip(names, inputs().values(), strict=True)]
    given = (Tensor * 3)(*(tensor for tensor, _ in kept))
    outputs = _library.regplug_run(handle, given if count else None, count)
    assert (outputs is None) == bool(said)
    if said:
        wanted = said.replace("NAMES", "program 'aotinductor': expected inputs [tokens, mask, state], got ")
        assert _library.regplug_last_error().decode() == wanted
    _library.regplug_free_outputs(outputs)
    _library.regplug_close(handle)


@pytest.mark.parametrize("rank", [9, 64, 65, 1_000_000_000])
def test_a_rank_that_nobody_set_is_refused(folder, rank):
    handle = _library.regplug_open(os.fsencode(folder), None, 0)
    kept = [to_tensor(array, "", name=name.encode()) for name, array in inputs().items()]
    given = (Tensor * 3)(*(tensor for tensor, _ in kept))
    given[1].rank, given[1].sizes = rank, (ctypes.c_int64 * 64)(*[1] * 64)
    assert _library.regplug_run(handle, given, 3) is None
    shape = f"expected mask [B, T] with B=3 and T=9, got [{', '.join(['1'] * rank)}]." if rank < 65 else ""
    assert _library.regplug_last_error().decode().endswith(shape or f"expected at most 8 sizes, got {rank}.")
    _library.regplug_close(handle)
