"""Which tokens a mask may leave out, how masks are drawn, and the inputs of golden cases that are drawn with them."""

import json

import pytest
import torch
from support.good_manifests import BASES

import regplug
from regplug.bundle.golden_inputs import draw_inputs
from regplug.bundle.io_signature import IOSignature
from regplug.bundle.mask_rules import MaskRules
from regplug.format.manifest import InputSpec, MoreInput, PartRecord
from regplug.format.manifest_rules import parse_manifest

COUNTED = "p: mask: expected a token{} that counts in every sample, got none in sample {}."
WHOLE = "p: mask: expected every token of {!r} to count, which takes no mask, got padding in sample {}."


def layout(**where):
    return regplug.TokenLayout(hidden_dim=1, **where)


READ = {  # of six tokens
    "all": (None, {0, 1, 2, 3, 4, 5}),
    "three after the first": (layout(num_registers=3, start=1), {1, 2, 3}),
    "the first two": (layout(num_registers=2, start=0), {0, 1}),
    "the last three": (layout(num_registers=3, start=-3), {3, 4, 5}),
    "the last": (layout(num_registers=1, start=-1), {5}),
    "three before the last": (layout(num_registers=3, start=-4), {2, 3, 4}),
    "those after two": (layout(num_registers=None, start=2), {2, 3, 4, 5}),
    "three places": (layout(num_registers=3, indices=(0, 2, 5), num_tokens=6), {0, 2, 5}),
}


@pytest.mark.parametrize("case", READ)
def test_one_token_that_is_read_is_enough_and_others_do_not_matter(case):
    where, read = READ[case]
    rules = MaskRules(where, None)
    for sample in range(3):
        for token in range(6):
            mask = torch.ones(3, 6, dtype=torch.bool)
            mask[sample] = torch.arange(6) == token
            if token in read:
                rules.check("p", mask)
                continue
            with pytest.raises(regplug.ShapeError) as error:
                rules.check("p", mask)
            assert str(error.value) == COUNTED.format("", sample)


PARTS = (
    PartRecord("cls", 1, (0, 1), False),
    PartRecord("state", 2, None, False),
    PartRecord("inner", 1, (1, -1), True),
    PartRecord("ends", 1, (-2, None), True),
)


def test_each_part_needs_a_token_or_all_of_its_own():
    """The layout begins at token 1, and the parts count from there: cls reads 1, inner 2 to 4, ends 4 and 5."""
    rules = MaskRules(layout(num_registers=None, start=1), PARTS)
    for kept, message in (
        ({1, 4}, None),
        ({1, 2, 5}, None),
        ({0, 1, 3, 5}, None),
        ({4}, WHOLE.format("cls", 1)),
        ({0, 3, 5}, WHOLE.format("cls", 1)),
        ({1, 5}, COUNTED.format(" of 'inner'", 1)),
        ({1, 2, 3}, COUNTED.format(" of 'ends'", 1)),
    ):
        mask = torch.ones(2, 6, dtype=torch.bool)
        mask[1] = torch.tensor([token in kept for token in range(6)])
        if message is None:
            rules.check("p", mask)
            continue
        with pytest.raises(regplug.ShapeError) as error:
            rules.check("p", mask)
        assert str(error.value) == message


def test_an_empty_batch_fulfils_all_rules():
    MaskRules(None, PARTS).check("p", torch.ones(0, 6, dtype=torch.bool))


def of(base, **changes):
    return MaskRules.of(parse_manifest("m", json.dumps(BASES[base]() | changes).encode()))


def test_the_rules_of_a_bundle_are_those_of_its_manifest():
    """A readout reads all of its tokens, also if the manifest says where they were."""
    join = of("join")
    assert (join.layout, [part.name for part in join.parts]) == (None, ["mean", "ends", "state"])
    conditioner = of("any_count")
    assert (conditioner.layout.start, conditioner.parts) == (1, None)
    assert of("conditioner") is None
    assert of("join", more_inputs=BASES["join"]()["more_inputs"][1:]) is None
    _, vector = BASES["join"]()["more_inputs"]
    parts = [*BASES["join"]()["parts"][:2], BASES["join"]()["parts"][2] | {"name": "goal"}]
    assert of("join", more_inputs=[vector | {"name": "goal"}], parts=parts) is None
    where = BASES["any_count"]()["layout"]
    assert of("join", layout=where).layout is None


def rows(count, length, first=0, rules=None):
    return (rules or MaskRules(None, None)).draw(count, length, first, torch.Generator().manual_seed(1))


def test_drawn_masks_are_whole_padded_on_the_right_on_the_left_and_anywhere_in_turn():
    for length in (2, 5, 6):
        counts = [set(rows(400, length)[kind::4].sum(1).tolist()) for kind in range(4)]
        assert counts == [{length}, *[set(range(1, length))] * 3]
    mask = rows(400, 5)
    falls, rises = mask[1::4].int().diff(), mask[2::4].int().diff()
    assert (falls <= 0).all()
    assert (rises >= 0).all()
    assert len({tuple(row.tolist()) for row in mask[3::4]}) > 20  # of 30
    assert rows(1, 5, 8).all()
    assert (rows(6, 5, 1).int().diff()[0] <= 0).all()
    assert rows(6, 5, 1)[3].all()
    assert rows(40, 1).all()


def test_a_part_that_takes_no_mask_keeps_its_tokens_and_the_others_one():
    rules = MaskRules(layout(num_registers=None, start=1), PARTS)
    mask = rows(400, 6, rules=rules)
    rules.check("p", mask)
    assert mask[:, :2].all()
    assert not mask[:, 2:].all(0).any()
    assert not (mask[:, 2:].sum(1) == 4).all()


def test_a_part_without_a_token_after_the_others_were_drawn_gets_its_first():
    parts = (PartRecord("a", 1, (0, None), True), PartRecord("b", 1, (0, 1), True), PartRecord("c", 1, (4, 6), True))
    rules = MaskRules(None, parts)
    mask = rows(400, 6, rules=rules)
    rules.check("p", mask)
    assert mask[:, 0].all()
    assert not mask[:, 1].all()


# ---- the inputs of golden cases

SIGNATURE = IOSignature(
    InputSpec("tokens", "float32", ("B", "T", 50), 0, 1),
    (),
    [4],
    (
        MoreInput("mask", "bool", ("B", "T")),
        MoreInput("state", "float32", ("B", 500)),
        MoreInput("goal", "float32", ("B", 3)),
    ),
    MaskRules(None, None),
)


def drawn(case=0, batch=8, length=9, around=0, signature=SIGNATURE, seed=0):
    return draw_inputs(signature, case, batch, length, around, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("around", [0, 3])
def test_the_padding_of_each_sample_is_nan_or_infinity_and_nothing_else_is(around):
    tokens, mask, state, goal = drawn(length=7, around=around)
    assert (tokens.shape, mask.shape) == ((8, 7 + 2 * around, 50), (8, 7 + 2 * around))
    assert (state.shape, goal.shape) == ((8, 500), (8, 3))
    used = slice(around, around + 7)
    assert int(mask.sum()) == int(mask[:, used].sum())
    for row in range(8):
        padding = tokens[row, used][~mask[row, used]]
        assert bool((padding.isinf() if row % 2 else padding.isnan()).all())
        assert tokens[row, used][mask[row, used]].isfinite().all()
    assert tokens[:, :around].isfinite().all()
    assert tokens[:, around + 7 :].isfinite().all()
    assert (~mask[:, used]).any(1).tolist() == [False, True, True, True] * 2


def test_numbers_are_normal_in_the_dtype_of_their_input_and_the_same_for_the_same_seed():
    tokens, mask, state, goal = drawn()
    for numbers in (tokens[mask], state):
        assert numbers.dtype == torch.float32
        assert abs(float(numbers.mean())) < 0.1
        assert abs(float(numbers.std()) - 1) < 0.1
    for one, same, other in zip(drawn(), (tokens, mask, state, goal), drawn(seed=1), strict=True):
        assert torch.equal(one.nan_to_num(), same.nan_to_num())
        assert not torch.equal(one, other)


def test_a_case_chooses_the_pattern_and_a_single_sample_has_padding_in_the_first_case():
    assert [bool(drawn(case)[1][0].all()) for case in range(5)] == [True, False, False, False, True]
    assert [bool(drawn(case, batch=1)[1].all()) for case in range(5)] == [False, False, False, True, False]


def test_without_a_mask_all_numbers_are_finite():
    signature = IOSignature(SIGNATURE.input, (), [4], SIGNATURE.more_inputs[1:])
    tokens, state, _ = drawn(signature=signature, around=1)
    assert (tokens.shape, state.shape) == ((8, 11, 50), (8, 500))
    assert tokens.isfinite().all()
