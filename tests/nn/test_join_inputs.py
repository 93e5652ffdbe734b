"""A join's other inputs: vectors, which are parts themselves, and a mask of its tokens; and joins of any length."""

import copy
import json
import pickle
import re
from typing import Any

import pytest
import torch
from support.joins import FIVE, LAYOUT, WIDTH, film_of
from torch import Tensor

import regplug
from regplug import ShapeError, SpecError, TokenGroup, TokenLayout, attach, join
from regplug.nn.attached import AttachedConditioner
from regplug.nn.readouts.join_parts import JoinPart, parts_of

VIT, TINY = "timm:vit_small_patch14_reg4_dinov2", {"img_size": 28, "depth": 1}
D = WIDTH
LAST = TokenLayout(num_registers=4, hidden_dim=D, start=-4, groups=(TokenGroup("patches", 0, -4),))


def inputs_of(length: int, batch: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(length)
    return torch.randn(batch, length, D), {"state": torch.randn(batch, 7), "time": torch.rand(batch, 1)}


def by_hand(module: Any, tokens: Tensor, vectors: dict[str, Tensor]) -> Tensor:
    """The vector of ``FIVE``, as one writes it oneself."""
    parts = {name: part.readout for name, part in module.parts.items()}
    read = [
        parts["cls"](tokens[:, :1]),
        parts["registers"](tokens[:, 1:5]),
        parts["patches"](tokens[:, 5:]),
        vectors["state"],
        parts["time"](vectors["time"][:, None]),
    ]
    return torch.cat(read, dim=1)


@pytest.fixture(scope="module")
def five() -> Any:
    torch.manual_seed(0)
    return FIVE.resolve(LAYOUT).build().eval()


def test_the_width_of_vectors_is_part_of_the_sum() -> None:
    spec = FIVE.resolve(LAYOUT)
    assert (spec.num_registers, spec.cond_dim, spec.formula) == (None, 24 + 24 + 24 + 7 + 1, "2*D + 32")
    widths = [(one.part.name, one.width) for one in parts_of(spec) or ()]
    assert widths == [("cls", 24), ("registers", 24), ("patches", 24), ("state", 7), ("time", 1)]
    assert parts_of(regplug.resolve("mean", num_registers=4, hidden_dim=D)) is None


@pytest.mark.parametrize("length", [6, 7, 30])
@pytest.mark.parametrize("mode", ["eager", "scripted", "compiled"])
def test_a_join_of_any_length_with_vectors_is_what_one_writes_by_hand(five, length, mode):
    if mode == "scripted":
        run = torch.jit.script(five)
    elif mode == "compiled":
        run = torch.compile(five, fullgraph=True, dynamic=True, backend="eager")
    else:
        run = five
    tokens, vectors = inputs_of(length)
    torch.testing.assert_close(run(tokens, None, vectors), by_hand(five, tokens, vectors))


def test_a_spec_of_a_join_is_data() -> None:
    spec = FIVE.resolve(LAYOUT, 14)
    assert pickle.loads(pickle.dumps(spec)) == spec
    stored = json.loads(json.dumps(spec.as_dict()))
    again = regplug.resolve("join", num_registers=14, hidden_dim=D, **stored["options"])
    assert (again, again.cond_dim) == (spec, 80)
    assert copy.deepcopy(spec.build()).out_dim == 80


def test_one_part_is_swapped_and_every_width_follows() -> None:
    wider = FIVE.swap(registers="concat", state=9)
    spec = wider.resolve(LAYOUT)
    assert spec.cond_dim == 24 + 4 * D + 24 + 9 + 1
    film = regplug.pair(spec, regplug.KernelFiLMGenerator, kernel_hidden_dim=5, num_film_layers=2)
    assert film.mlp[0].in_features == spec.cond_dim
    assert FIVE.resolve(LAYOUT).cond_dim == 80  # unchanged


def test_registers_at_the_end_are_joined_for_any_length_too() -> None:
    spec = join(patches="mean", registers="pool").resolve(LAST)
    assert spec.num_registers is None
    for length in (5, 12):
        tokens, _ = inputs_of(length)
        wanted = torch.cat([tokens[:, :-4].mean(1), tokens[:, -4:].mean(1)], dim=1)
        torch.testing.assert_close(spec.build()(tokens), wanted)
    with pytest.raises(ShapeError, match=r"join': expected registers \[B, N, 24\] with N >= 5, got \[3, 4, 24\]"):
        spec.build()(inputs_of(4)[0])


def test_a_readout_that_needs_a_fixed_number_is_refused_in_a_group_of_free_length() -> None:
    with pytest.raises(SpecError, match="'concat': num_registers: expected a fixed number of registers, got None"):
        join(registers="pool", patches="concat").resolve(LAYOUT)
    assert join(registers="pool", patches="concat").resolve(LAYOUT, 9).cond_dim == D + 4 * D


# ---- vectors


def wrong(change: Any) -> Any:
    tokens, vectors = inputs_of(9)
    return tokens, None, change(vectors)


VECTORS: dict[str, tuple[Any, str]] = {
    "none": (lambda v: None, "expected the vector 'state' [B, 7], got none."),
    "one missing": (lambda v: {"state": v["state"]}, "expected the vectors [state, time], got [state]."),
    "one more": (
        lambda v: {**v, "goal": v["time"]},
        "expected the vectors [state, time], got [state, time, goal].",
    ),
    "another name": (lambda v: {"state": v["state"], "t": v["time"]}, "expected the vector 'time' [B, 1], got none."),
    "another width": (lambda v: {**v, "state": v["state"][:, :6]}, "expected state [3, 7], got [3, 6]."),
    "another batch": (lambda v: {**v, "state": v["state"][:1]}, "expected state [3, 7], got [1, 7]."),
    "another rank": (lambda v: {**v, "time": v["time"][:, 0]}, "expected time [3, 1], got [3]."),
    "integers": (
        lambda v: {**v, "time": v["time"].long()},
        "time: expected floating-point numbers, got dtype int64.",
    ),
    "elsewhere": (lambda v: {**v, "time": v["time"].to("meta")}, "time: expected device cpu, got meta."),
}


@pytest.mark.parametrize("case", VECTORS)
def test_wrong_vectors_are_refused_with_one_line(five, case):
    change, message = VECTORS[case]
    with pytest.raises(ShapeError) as error:
        five(*wrong(change))
    assert str(error.value) == f"readout 'join': {message}"


@pytest.mark.parametrize("case", ["one missing", "another width", "another batch"])
def test_wrong_vectors_are_refused_in_script_with_the_same_line(five, case):
    change, message = VECTORS[case]
    with pytest.raises(torch.jit.Error) as error:
        torch.jit.script(five)(*wrong(change))
    assert f"readout 'join': {message}" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_vector_in_another_precision_becomes_that_of_the_weights(five, dtype):
    tokens, vectors = inputs_of(9)
    found = five(tokens, None, {name: vector.to(dtype) for name, vector in vectors.items()})
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, five(tokens, None, vectors), atol=2e-2, rtol=2e-2)


def test_under_autocast_and_in_other_precisions_a_join_gives_one_dtype() -> None:
    tokens, vectors = inputs_of(9)
    module = FIVE.resolve(LAYOUT).build()
    with torch.autocast("cpu", torch.bfloat16):
        assert module(tokens, None, vectors).dtype == torch.bfloat16
    double = module.double()(tokens, None, vectors)
    assert double.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: join(state=7).resolve(LAYOUT), "expected at least one that reads tokens, got vectors alone"),
        (lambda: join(cls="mean", mask=3).resolve(LAYOUT), "expected a vector with another name than mask, tokens, "),
        (lambda: join(cls="mean", tokens=3).resolve(LAYOUT), "expected a vector with another name than mask, tokens, "),
        (lambda: join(cls="mean", state=(7, "nothing")).resolve(LAYOUT), "strategy 'nothing': not"),
        (lambda: join(cls="mean", state=(7, "attention")).resolve(LAYOUT), "expected a multiple of num_heads=8, got 7"),
        (lambda: JoinPart("state", width=0), "width: expected a positive integer, got 0"),
        (lambda: JoinPart("state", width=7, start=1), "part 'state': expected tokens or a width, got both"),
        (lambda: JoinPart("state"), "expected a strategy, or the width of a vector, got neither"),
        (lambda: JoinPart("state", width=7, options={"a": 1}), "expected no options without a strategy, got {'a': 1}"),
    ],
)
def test_a_wrong_vector_of_a_join_is_refused(make, words):
    with pytest.raises(regplug.RegplugError) as error:
        make()
    assert words in str(error.value)


# ---- masks


@pytest.mark.parametrize("mode", ["eager", "scripted"])
def test_padding_changes_nothing_whatever_it_holds(five, mode):
    run = torch.jit.script(five) if mode == "scripted" else five
    tokens, vectors = inputs_of(9)
    wanted = run(tokens, torch.ones(3, 9, dtype=torch.bool), vectors)
    torch.testing.assert_close(wanted, by_hand(five, tokens, vectors))
    padding = torch.full((3, 4, D), float("nan"))
    longer = torch.cat([tokens[:, :5], padding, tokens[:, 5:]], dim=1)  # the patches, padded on the left
    mask = (torch.arange(13) < 5) | (torch.arange(13) >= 9)
    torch.testing.assert_close(run(longer, mask.expand(3, 13), vectors), wanted)


MASKS: dict[str, tuple[Any, str]] = {
    "another length": (lambda m: m[:, :8], "expected mask [3, 9], got [3, 8]."),
    "another rank": (lambda m: m[0], "expected mask [3, 9], got [9]."),
    "a fixed part": (
        lambda m: m & (torch.arange(9) != 2),
        "mask: expected every token of 'registers' to count, which takes no mask, got padding in sample 0.",
    ),
}


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("mode", ["eager", "scripted"])
def test_a_wrong_mask_of_a_join_is_refused(five, case, mode):
    change, message = MASKS[case]
    tokens, vectors = inputs_of(9)
    run = torch.jit.script(five) if mode == "scripted" else five
    with pytest.raises((ShapeError, torch.jit.Error)) as error:
        run(tokens, change(torch.ones(3, 9, dtype=torch.bool)), vectors)
    assert f"readout 'join': {message}" in str(error.value)


def test_a_mask_that_no_part_takes_is_refused() -> None:
    module = join(registers="pool", state=7).resolve(LAYOUT, 9).build()
    tokens, vectors = inputs_of(9)
    with pytest.raises(ShapeError, match="readout 'join': expected no mask, as no part takes one, got a mask"):
        module(tokens, torch.ones(3, 9, dtype=torch.bool), {"state": vectors["state"]})


# ---- in a conditioner, behind a backbone


def test_a_conditioner_passes_mask_and_vectors_on(five):
    spec = FIVE.resolve(LAYOUT)
    conditioner = regplug.Conditioner(LAYOUT.for_group("tokens"), five, film_of(spec))
    tokens, vectors = inputs_of(9)
    mask = torch.arange(9).expand(3, 9) < 7
    wanted = conditioner.film(five(tokens[:, :7], None, vectors))
    for run in (conditioner, torch.jit.script(conditioner)):
        for got, want in zip(run(tokens, mask, vectors), wanted, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "layout",
    [
        TokenLayout(num_registers=3, hidden_dim=D, start=2),
        TokenLayout(num_registers=3, hidden_dim=D, start=-4),
        TokenLayout(num_registers=3, hidden_dim=D, indices=(1, 4, 7), num_tokens=9),
        TokenLayout(num_registers=3, hidden_dim=D, indices=(1, 2, 7), num_tokens=9),
    ],
)
def test_a_conditioners_mask_is_that_of_all_tokens(layout):
    spec = regplug.resolve("mean", num_registers=3, hidden_dim=D)
    conditioner = regplug.Conditioner(layout, spec.build(), film_of(spec))
    tokens, mask = torch.randn(2, 9, D), torch.ones(2, 9, dtype=torch.bool)
    places = layout.positions(9)
    mask[0, places[1]] = False
    conditioning = torch.stack([tokens[0, [places[0], places[2]]].mean(0), tokens[1, list(places)].mean(0)])
    for run in (conditioner, torch.jit.script(conditioner)):
        (gamma, _), *_ = run(tokens, mask)
        torch.testing.assert_close(gamma, conditioner.film(conditioning)[0][0])
        with pytest.raises((ShapeError, torch.jit.Error), match=r"expected mask \[2, 9\], got \[2, 8\]"):
            run(tokens, mask[:, :8])


@pytest.mark.parametrize(("strategy", "word"), [("pool", "mask"), ("pool", "vectors"), ("mean", "vectors")])
def test_a_conditioner_refuses_what_its_readout_does_not_take(strategy, word):
    spec = regplug.resolve(strategy, num_registers=4, hidden_dim=D)
    conditioner = regplug.Conditioner(LAYOUT, spec.build(), film_of(spec))
    value: Any = torch.ones(3, 9, dtype=torch.bool) if word == "mask" else {}
    with pytest.raises(ShapeError, match=f"readout: expected no {word}, as it takes none, got some"):
        conditioner(inputs_of(9)[0], **{word: value})


@pytest.mark.parametrize("film", [None, {"kernel_hidden_dim": 8, "num_film_layers": 2}])
def test_an_attached_module_takes_a_mask_of_the_model_s_tokens(film):
    """The patches of an object alone, for example, whatever else the image shows."""
    images = torch.randn(2, 3, 28, 28)
    attached = attach(VIT, "mean", group="patches", film_options=film, model_options=TINY).eval()
    tokens = attached.tokens(images)
    first = attached.layout.positions(tokens.shape[1])[0]
    mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    mask[0, first] = mask[1, first + 2 : first + 4] = True
    wanted = torch.stack([tokens[0, first], tokens[1, first + 2 : first + 4].mean(0)])
    if isinstance(attached, AttachedConditioner):
        wanted = attached.conditioner.film(wanted)[0][0]
    for run in (attached, torch.jit.script(attached)):
        got = run(images, mask=mask)
        torch.testing.assert_close(got[0][0] if isinstance(attached, AttachedConditioner) else got, wanted)
    with pytest.raises(ShapeError, match=re.escape(f"expected mask {list(mask.shape)}, got [2, 3]")):
        attached(images, mask=mask[:, :3])


@pytest.mark.parametrize("film", [None, {"kernel_hidden_dim": 8, "num_film_layers": 2}])
@pytest.mark.parametrize("kind", [Tensor.numpy, Tensor.tolist])
def test_an_attached_module_refuses_a_mask_that_is_no_tensor(film, kind):
    attached = attach(VIT, "mean", film_options=film, model_options=TINY).eval()
    images = torch.randn(2, 3, 28, 28)
    mask = kind(torch.ones(attached.tokens(images).shape[:2], dtype=torch.bool))
    with pytest.raises(ShapeError) as error:
        attached(images, mask=mask)
    got = type(mask).__name__
    assert str(error.value) == f"TokenLayout: mask: expected a bool tensor [2, 9], got {got}; use torch.as_tensor."


def test_an_attached_module_refuses_a_mask_that_its_readout_does_not_take():
    attached = attach(VIT, "pool", model_options=TINY).eval()
    with pytest.raises(ShapeError, match="readout: expected no mask, as it takes none, got some"):
        attached(torch.randn(2, 3, 28, 28), mask=torch.ones(2, 4, dtype=torch.bool))


# ---- orders and precisions


def test_joins_of_the_same_parts_in_another_order_are_scripted_each_in_its_own() -> None:
    """TorchScript gives dictionaries of the same keys one type, and a type has one order."""
    tokens, vectors = inputs_of(9)
    for choice in (join(patches="mean", state=7, time=1), join(patches="mean", time=1, state=7)):
        module = choice.resolve(LAYOUT).build()
        assert torch.equal(torch.jit.script(module)(tokens, None, vectors), module(tokens, None, vectors))
    for choice in (join(registers="mean", patches="mean"), join(patches="mean", registers="mean")):
        module = choice.resolve(LAYOUT).build()
        assert torch.equal(torch.jit.script(module)(tokens), module(tokens))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8])
@pytest.mark.parametrize("first", ["time", "registers"])
def test_a_vector_keeps_its_numbers_next_to_coarse_tokens(first, dtype):
    parts: dict[str, Any] = {"time": (1, "gated-abmil", {"attention_dim": 3}), "registers": "pool"}
    ordered = parts if first == "time" else dict(reversed(parts.items()))
    module = join(**ordered).resolve(LAYOUT).build()
    place = 0 if first == "time" else D
    for run in (module, torch.jit.script(module)):
        found = run(torch.ones(1, 7, D).to(dtype), None, {"time": torch.tensor([[300.7]])})
        assert found.dtype == torch.float32
        torch.testing.assert_close(found[0, place].item(), 300.7, atol=1e-3, rtol=0)


def test_vectors_are_not_rounded_to_integers_next_to_integer_tokens() -> None:
    module = join(state=3, patches="sum").resolve(LAYOUT).build()
    with pytest.raises(ShapeError, match="expected tokens of a floating-point dtype next to other parts of one"):
        module(torch.ones(1, 9, D, dtype=torch.uint8), None, {"state": torch.full((1, 3), 0.9)})


@pytest.mark.parametrize("mode", ["compiled", "vmap"])
def test_where_a_mask_cannot_be_read_padding_in_a_part_without_mask_gives_nan(mode):
    module = join(registers="pool", patches="mean").resolve(LAYOUT).build().eval()
    tokens, mask = inputs_of(9)[0], torch.ones(3, 9, dtype=torch.bool)
    wanted = module(tokens, mask)
    mask[1, 2] = False
    if mode == "compiled":
        found = torch.compile(module, fullgraph=True, backend="eager")(tokens, mask)
    else:
        found = torch.func.vmap(lambda token, one: module(token[None], one[None])[0])(tokens, mask)
    assert found[1, :D].isnan().all()
    torch.testing.assert_close(found[[0, 2]], wanted[[0, 2]])
    torch.testing.assert_close(found[1, D:], wanted[1, D:])


KINDS: dict[str, tuple[Any, str]] = {
    "a tensor for vectors": (lambda v: (None, v["state"]), "vectors: expected a tensor by each name, got Tensor."),
    "None for a vector": (lambda v: (None, {**v, "time": None}), "time: expected a tensor, got NoneType."),
    "a list for a vector": (lambda v: (None, {**v, "time": [1]}), "time: expected a tensor, got list."),
    "vectors for the mask": (lambda v: (v, None), "mask: expected a tensor, got dict."),
}


@pytest.mark.parametrize("case", KINDS)
def test_what_is_no_tensor_is_refused_with_one_line(five, case):
    change, message = KINDS[case]
    tokens, vectors = inputs_of(9)
    with pytest.raises(ShapeError) as error:
        five(tokens, *change(vectors))
    assert str(error.value) == f"readout 'join': {message}"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FIVE.resolve(None), "join: layout: expected a TokenLayout, got None."),  # type: ignore[arg-type]
        (lambda: FIVE.resolve(LAYOUT, 0), "join: num_tokens: expected a positive integer, got 0."),
    ],
)
def test_a_join_is_resolved_for_a_layout_and_a_length(call, message):
    with pytest.raises(SpecError) as error:
        call()
    assert str(error.value) == message


def test_a_part_that_only_short_sequences_have_is_refused() -> None:
    with pytest.raises(SpecError, match="part 'a': expected start before stop in every sequence, got start=-3, stop=5"):
        regplug.resolve("join", num_registers=None, hidden_dim=D, parts=(JoinPart("a", "mean", -3, 5),))


def test_a_group_of_the_backbone_is_no_vector() -> None:
    with pytest.raises(SpecError, match="join: part 'cls': expected a strategy, as it is a group of the layout, got 7"):
        join(registers="pool", cls=7).resolve(LAYOUT)
