"""The comparison of scores: its intervals cover the truth, it claims a winner only where there is one."""

import functools
import math

import pytest
import torch

from regplug.commands.rank.statistics import compare_scores
from regplug.errors import SpecError

FOLDS, RUNS = 5, 200
NAMES = ["a", "b", "c", "d", "e"]


def drawn(truth, seed, count=250, seeds=3):
    """Right or wrong answers of strategies that share what makes a sample hard, and of which each seed trains anew."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hardness = noise(1, count, 1) + 0.7 * noise(1, count, len(truth)) + 0.5 * noise(seeds, count, len(truth))
    scale = math.sqrt(1 + 0.49 + 0.25)
    normal = torch.distributions.Normal(0, scale)
    trained = 0.05 * noise(seeds, 1, len(truth))  # how well each training went
    return (hardness + trained < normal.icdf(torch.tensor(truth, dtype=torch.float64))).double()


@functools.cache
def outcomes(truth, method):
    """For each run, whether all intervals hold the truth, and the winner."""
    found = [method(drawn(truth, seed)) for seed in range(RUNS)]
    return [
        (all(one.low <= truth[one.first] - truth[one.second] <= one.high for one in each.pairs), each.winner)
        for each in found
    ]


def ours(scores):
    return compare_scores(scores, NAMES, [16] * 5, FOLDS)


def with_seeds_as_samples(scores):
    """Wrong: a sample's scores under three seeds are not three samples."""
    return compare_scores(scores.reshape(1, -1, scores.shape[2]), NAMES, [16] * 5, FOLDS)


def share(values):
    values = list(values)
    return sum(values) / len(values)


ALIKE, TWO_BEST, ONE_BEST = (0.7,) * 5, (0.75, 0.75, 0.6, 0.6, 0.5), (0.88, 0.7, 0.65, 0.6, 0.5)


@pytest.mark.parametrize("truth", [ALIKE, TWO_BEST, ONE_BEST], ids=["alike", "two best", "one best"])
def test_all_intervals_hold_the_truth_together_in_95_of_100_runs(truth):
    covered = share(holds for holds, _ in outcomes(truth, ours))
    assert 0.92 <= covered <= 0.995


def test_intervals_that_count_each_seed_as_a_sample_do_not():
    assert share(holds for holds, _ in outcomes(ALIKE, with_seeds_as_samples)) < 0.85


@pytest.mark.parametrize("truth", [ALIKE, TWO_BEST], ids=["alike", "two best"])
def test_a_winner_is_claimed_in_at_most_5_of_100_runs_where_there_is_none(truth):
    assert share(winner is not None for _, winner in outcomes(truth, ours)) <= 0.05


def test_a_strategy_that_is_better_wins():
    assert share(winner == 0 for _, winner in outcomes(ONE_BEST, ours)) > 0.9


def test_what_may_be_best_holds_the_best_and_leaves_the_worst_out():
    found = ours(drawn(TWO_BEST, 0))
    assert {0, 1} <= set(found.may_be_best)
    assert 4 not in found.may_be_best
    assert found.winner is None
    assert found.largest_difference > 0.25


def test_a_difference_read_in_the_other_order_is_its_negative():
    found = ours(drawn(ONE_BEST, 0))
    one, other = found.of(0, 3), found.of(3, 0)
    assert (other.difference, other.low, other.high) == (-one.difference, -one.high, -one.low)


def test_a_reference_takes_part_in_the_intervals_but_cannot_win():
    scores = drawn(ONE_BEST, 0).flip(2)
    found = compare_scores(scores, NAMES, [16] * 5, FOLDS, candidates=4)
    assert (found.winner, found.may_be_best) == (None, (3,)) or 4 not in found.may_be_best
    assert found.of(4, 0).low > 0


def test_strategies_that_answer_alike_are_tied():
    scores = drawn([0.7], 0).expand(-1, -1, 5)
    found = ours(scores)
    assert found.winner is None
    assert found.may_be_best == (0, 1, 2, 3, 4)
    assert {one.discordant for one in found.pairs} == {0}


def test_nine_samples_of_difference_are_no_certainty():
    """Without a floor, one sample that all seeds answer differently has nearly no variance, and its strategy wins."""
    scores = drawn([0.7, 0.7], 0)
    scores[..., 1] = scores[..., 0]
    wrong = (scores[0, :, 0] == 0).nonzero()[:1, 0]
    scores[:, wrong, 0] = 1
    found = compare_scores(scores, ["a", "b"], [16] * 2, FOLDS)
    assert found.pairs[0].discordant == 1
    assert found.winner is None


def test_copies_of_samples_in_one_group_add_nothing():
    scores = drawn(TWO_BEST, 0)
    copies = scores.repeat_interleave(4, 1)
    groups = torch.arange(scores.shape[1]).repeat_interleave(4)
    alone, grouped = ours(scores), compare_scores(copies, NAMES, [16] * 5, FOLDS, groups=groups)
    as_if_new = ours(copies)
    for one, other, false in zip(alone.pairs, grouped.pairs, as_if_new.pairs, strict=True):
        assert other.difference == pytest.approx(one.difference)
        assert other.high - other.low == pytest.approx(one.high - one.low, rel=0.05)
        assert false.high - false.low < 0.8 * (one.high - one.low)


def test_vectors_as_wide_as_there_are_samples_have_wider_intervals():
    scores = drawn(ALIKE, 0)
    narrow, wide = ours(scores), compare_scores(scores, NAMES, [16, 16, 16, 16, 400], FOLDS)
    for one, other in zip(narrow.pairs, wide.pairs, strict=True):
        widened = other.high - other.low > 1.01 * (one.high - one.low)
        assert widened == (4 in (one.first, one.second))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(3, 20, 2), "scores: expected at least 30 independent samples, got 20"),
        (
            torch.zeros(3, 50, 3),
            r"scores: expected \[seeds, samples, 2\], one for each name and width, got \[3, 50, 3\]",
        ),
        (torch.full((3, 50, 2), math.nan), "scores: expected finite numbers, got NaN or infinity"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(scores, message):
    with pytest.raises(SpecError, match=message):
        compare_scores(scores, ["a", "b"], [4, 4], FOLDS)


def test_two_perfect_strategies_may_still_differ():
    """240 right answers do not show that no other will ever be wrong."""
    found = compare_scores(torch.ones(3, 240, 2), ["a", "b"], [4, 4], FOLDS)
    assert found.winner is None
    assert 0.005 < found.largest_difference < 0.05
    assert "nan" not in found.sentence(str)


def test_four_samples_of_difference_are_no_winner():
    """McNemar's exact test gives p = 0.125."""
    scores = torch.ones(1, 100, 2)
    scores[0, :4, 1] = 0
    assert compare_scores(scores, ["a", "b"], [4, 4], FOLDS).winner is None


GOOD = torch.zeros(2, 50, 2)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((GOOD.numpy(), ["a", "b"], [4, 4], 5), {}, "scores: expected a tensor, got ndarray; use torch.from_numpy"),
        ((GOOD[:0], ["a", "b"], [4, 4], 5), {}, r"scores: expected \[seeds, samples, 2\]"),
        ((GOOD, ["a", "a"], [4, 4], 5), {}, "names: expected different ones, got a, a"),
        ((GOOD, ["a", "b"], [4, 4], 1), {}, "folds: expected an integer of at least 2, got 1"),
        ((GOOD, ["a", "b"], [4, 4], 5), {"candidates": 3}, "candidates: expected 1 to 2, got 3"),
        ((GOOD, ["a", "b"], [4, 4], 5), {"candidates": 0}, "candidates: expected 1 to 2, got 0"),
        ((GOOD, ["a", "b"], [4, 4], 5), {"groups": torch.zeros(9)}, r"groups: expected a tensor \[50\], .* got \[9\]"),
        ((GOOD, ["a", "b"], [4, 4], 5), {"groups": torch.arange(50) // 2}, "at least 30 independent groups, got 25"),
    ],
)
def test_wrong_arguments_are_refused(arguments, options, message):
    with pytest.raises(SpecError, match=message):
        compare_scores(*arguments, **options)


def test_one_strategy_has_nothing_to_be_compared_with():
    found = compare_scores(GOOD[..., :1], ["a"], [4], FOLDS)
    assert found.winner is None
    assert found.sentence(str) == "a has no other strategy to be compared with."
