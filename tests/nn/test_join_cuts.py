"""A join cuts its tokens with one operation, at the places where slices would."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from regplug.nn.readouts.join_cuts import cuts_of
from regplug.nn.readouts.join_parts import JoinPart
from regplug.nn.readouts.joins import TokenJoin

LEAST = 8
positions = st.integers(-LEAST, LEAST)


@st.composite
def groups(draw):
    """Groups that each hold a token in every sequence of at least eight."""
    spans = []
    for start, stop in draw(st.lists(st.tuples(positions, st.none() | positions), min_size=1, max_size=4)):
        ends = range(LEAST, LEAST + 3)
        if all(range(count)[start:stop] for count in ends):
            spans.append((start, stop))
    return spans


@given(groups(), st.integers(LEAST, LEAST + 5))
def test_each_group_is_the_piece_at_its_place(spans, count):
    cuts = cuts_of(spans, None, LEAST)
    if cuts is None:
        return
    sizes = [size + (count if place == cuts.rest else 0) for place, size in enumerate(cuts.sizes)]
    tokens = torch.arange(count)
    pieces = tokens.split_with_sizes(sizes)
    for (start, stop), place in zip(spans, cuts.places, strict=True):
        assert pieces[place].tolist() == tokens[start:stop].tolist()


def test_what_can_be_cut_is_cut():
    assert cuts_of([(0, 1), (1, 5), (5, None)], None, 6) == ([1, 4, -5], 2, [0, 1, 2])
    assert cuts_of([(5, None), (0, 1), (0, 1)], 9, 9) == ([1, 4, 4], None, [2, 0, 0])
    assert cuts_of([(-3, None), (0, 2)], None, 5) == ([2, -5, 3], 1, [2, 0])
    assert cuts_of([(0, None)], None, 1) == ([0], 0, [0])


def test_groups_that_share_some_tokens_are_not_cut():
    assert cuts_of([(0, 3), (2, 5)], None, 5) is None
    assert cuts_of([(0, 4), (-4, None)], None, 6) is None  # in the shortest sequences


def test_groups_that_share_some_tokens_are_read_all_the_same():
    parts = (JoinPart("first", "mean", 0, 3), JoinPart("inner", "mean", 2, 5), JoinPart("all", "mean"))
    tokens = torch.randn(2, 7, 4)
    wanted = torch.cat([tokens[:, :3].mean(1), tokens[:, 2:5].mean(1), tokens.mean(1)], 1)
    module = TokenJoin(None, 4, parts)
    for run in (module, torch.jit.script(module)):
        torch.testing.assert_close(run(tokens), wanted)
