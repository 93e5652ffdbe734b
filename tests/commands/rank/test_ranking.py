"""Strategies are trained alike, on the same folds, and the ranking says what is known of the samples."""

import json
import math

import pytest
import torch
from support.ranked_samples import CLASSES, FAST, D, R, ranked, sources, spec_of, specs
from torch import nn

from regplug.commands.rank.entrants import Plan, Sources, digest_of
from regplug.commands.rank.heads import Head
from regplug.commands.rank.splits import derangement, folds_of, inner_split
from regplug.errors import SpecError

# ---- splits


def test_folds_have_equal_sizes_and_shares_of_each_class():
    classes = torch.arange(100) % 4
    fold = folds_of(classes, None, 5, seed=0)
    assert fold.bincount().tolist() == [20] * 5
    assert {tuple(classes[fold == one].bincount().tolist()) for one in range(5)} == {(5, 5, 5, 5)}


def test_a_seed_decides_the_folds():
    numbers = torch.randn(50, 1)
    first, again, other = (folds_of(numbers, None, 5, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_samples_of_one_group_are_in_one_fold():
    groups = torch.randint(0, 20, (200,), generator=torch.Generator().manual_seed(0))
    fold = folds_of(torch.arange(200) % 2, groups, 4, seed=0)
    assert all(len(fold[groups == one].unique()) == 1 for one in range(20))
    assert fold.bincount().min() > 25
    train = (fold != 0).nonzero()[:, 0]
    kept, chosen_by = inner_split(train, torch.arange(200) % 2, groups, seed=0)
    assert not set(groups[kept].tolist()) & set(groups[chosen_by].tolist())
    assert sorted([*kept.tolist(), *chosen_by.tolist()]) == train.tolist()


@pytest.mark.parametrize("count", [2, 3, 50])
def test_every_sample_gets_another_one(count):
    other = derangement(count, seed=0)
    assert sorted(other.tolist()) == list(range(count))
    assert bool((other != torch.arange(count)).all())


# ---- what is found


def test_a_readout_that_can_single_out_a_register_beats_one_that_cannot():
    found = ranked(specs("mean", "concat", "max"), sources(300))
    assert found.winner == "concat"
    assert found.sentence.startswith("concat is better than every other strategy, by at least ")
    scores = [row.score for row in found.rows[:3]]
    assert scores == sorted(scores, reverse=True)


def test_controls_and_references_score_as_chance():
    found = ranked(specs("concat"), sources(300))
    best = found.rows[0]
    assert best.score > 0.8
    for name in ("swapped", "mean", "zeros"):
        assert best.controls[name] < 0.5
    assert {row.name for row in found.rows[1:]} == {"class token", "mean of patches", "constant"}
    assert all(row.kind == "reference" and row.score < 0.5 for row in found.rows[1:])
    assert found.sentence == "concat predicts better than a constant; there is no other strategy to compare it with."


def test_numbers_are_predicted_too():
    found = ranked(specs("concat", "mean"), sources(300, "numbers"), plan=Plan(Head(), seeds=2, folds=3, epochs=20))
    scores = {row.name: row.score for row in found.rows}
    assert found.metric == "R2"
    assert scores["concat"] > 0.8 > 0.7 > scores["mean"]
    assert scores["constant"] == pytest.approx(0, abs=0.05)


def test_where_there_is_no_information_that_is_said():
    given = sources()
    noise = Sources({"registers": torch.randn(150, R, D)}, given.targets, CLASSES, None, "noise")
    found = ranked(specs("mean", "concat"), noise)
    assert found.winner is None
    assert found.sentence == "No information found: no strategy predicts better than a constant."


def test_a_tie_says_how_large_a_difference_may_still_be():
    found = ranked(specs("sum", "mean"), sources(300))
    assert found.winner is None
    assert found.sentence.startswith("No difference between the strategies was found. Differences of up to ")
    assert ranked(specs("sum", "mean"), sources(300), margin=0.5).sentence.endswith("They are equal within 50 points.")


def test_a_film_head_reads_patches_and_is_modulated():
    """The patches say one of two groups of classes, and the registers which class of it: only both say it."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 4, (800,), generator=generator)
    registers = torch.randn(800, R, D, generator=generator)
    patches = torch.randn(800, 1, D, generator=generator)
    registers[:, 0, 0] += 4 * (classes % 2)
    patches[:, 0, 0] += 4 * (classes // 2)
    tokens = {"registers": registers, "patches": patches}
    given = Sources(tokens, classes, 4, None, digest_of(tokens, classes, None))
    head = Head("kernel-film", {"kernel_hidden_dim": 16, "num_film_layers": 2})
    [row, *_] = ranked(specs("concat"), given, plan=Plan(head, seeds=2, folds=3, epochs=20)).rows
    assert row.score > 0.8
    assert 0.3 < row.controls["swapped"] < 0.7  # the patches still say the group


# ---- strategies that fail


class Raising(nn.Module):
    def __init__(self, num_registers, hidden_dim):
        super().__init__()

    def forward(self, registers):
        if self.training:
            raise RuntimeError("not today\nsecond line")
        return registers.mean(1)


class NotANumber(nn.Module):
    def __init__(self, num_registers, hidden_dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_dim))

    def forward(self, registers):
        return registers.mean(1) * self.weight / 0 * 0


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (Raising, "RuntimeError: not today second line ("),
        (NotANumber, "SpecError: strategy 'own': expected a finite loss, got none at 0.002, 0.01, 0.05."),
    ],
)
def test_a_strategy_that_fails_is_a_row_and_the_others_go_on(build, why):
    found = ranked([*specs("mean", "concat"), spec_of(build)], sources(300))
    row = next(row for row in found.rows if row.name == "own")
    assert row.score is None
    assert row.error.startswith(why)
    assert found.winner == "concat"


def test_if_all_fail_that_is_said():
    found = ranked([spec_of(Raising)])
    assert (found.ok, found.sentence, found.winner) == (False, "No strategy could be trained.", None)
    json.dumps(found.as_dict(), allow_nan=False)


# ---- results


def test_the_json_values_have_every_pair_and_no_nan():
    found = ranked(specs("mean", "concat"), runtimes=("eager", "torchscript")).as_dict()
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    assert {(one["first"], one["second"]) for one in found["pairs"]} >= {("mean", "concat"), ("concat", "constant")}
    [first, *_] = found["rows"]
    assert first["cost"]["microseconds"]["torchscript"]["median"] > 0
    assert first["spec"]["cond_dim"] == R * D


def test_the_same_strategy_twice_is_refused_and_with_other_options_named_by_them():
    with pytest.raises(SpecError, match="strategies: mean: expected each one once, got it 2 times"):
        ranked(specs("mean", "mean"))
    two = [*specs("select-concat", indices=[0]), *specs("select-concat", indices=[2])]
    assert ranked(two, sources(300)).winner == "select-concat (indices=(2,))"


def test_kept_results_are_used_again_and_damaged_ones_made_again(tmp_path):
    first = ranked(specs("mean", "concat"), results=tmp_path).as_dict()
    kept = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    assert len(kept) == 5 * FAST.seeds * FAST.folds
    damaged, *_ = kept
    damaged.write_bytes(b"not safetensors")
    assert ranked(specs("mean", "concat"), results=tmp_path).as_dict() == first
    assert {path for path in kept if path.stat().st_ino != kept[path]} == {damaged}


@pytest.mark.parametrize("change", ["epochs", "seeds", "samples", "options"])
def test_results_of_other_settings_are_not_used(tmp_path, change):
    ranked(specs("mean"), results=tmp_path)
    before = len([*tmp_path.iterdir()])
    plan = {"epochs": Plan(Head(), 2, 3, 7), "seeds": Plan(Head(), 3, 3, 6)}.get(change, FAST)
    given = sources(151) if change == "samples" else sources()
    chosen = specs("mean-std", eps=1e-3) if change == "options" else specs("mean")
    ranked(chosen, given, plan=plan, results=tmp_path)
    assert len([*tmp_path.iterdir()]) > before


def test_other_processes_give_the_same_numbers(tmp_path):
    alone, together = (ranked(specs("mean", "concat"), jobs=jobs).as_dict() for jobs in (1, 2))
    assert together == alone


def test_a_class_of_this_process_alone_is_trained_here():
    class Local(nn.Module):
        def __init__(self, num_registers, hidden_dim):
            super().__init__()

        def forward(self, registers):
            return registers[:, 2]

    found = ranked([*specs("mean"), spec_of(Local)], sources(300), jobs=2)
    assert found.winner == "own"
    assert math.isfinite(found.rows[0].score)


def test_notes_say_what_makes_a_ranking_doubtful():
    facts = {
        "weights": "random",
        "duplicates": 3,
        "empty_folders": {"count": 2, "first": ["dogs", "x" * 300]},
        "unlabelled_images": {"count": 1007, "first": ["a.png", "b.png"]},
    }
    notes = "\n".join(ranked(specs("mean", "concat"), facts=facts).notes)
    assert "the backbone has random weights" in notes
    assert "3 samples are copies of others" in notes
    assert f"folders without images, which are no classes: 2 (dogs, {'x' * 40}...)." in notes
    assert "images without a label, which are left out: 1,007 (a.png, b.png and 1,005 more)." in notes
    assert "fewer than 3 seeds" in notes
    assert "few samples for the width of concat" in notes
    quiet = ranked(specs("mean"), sources(300), plan=Plan(Head(), seeds=3, folds=3, epochs=6), facts={}).notes
    assert not any("seeds" in note or "random" in note or "copies" in note or "width" in note for note in quiet)


def test_copies_of_one_register_are_no_advantage():
    """All strategies see the same, so a difference would come from the training."""
    made = sources(300)
    copied = made.tokens["registers"][:, 2:3].expand(-1, R, -1).contiguous()
    found = ranked(specs("mean", "concat"), Sources({"registers": copied}, made.targets, CLASSES, None, "copies"))
    assert found.winner is None
    assert abs(found.rows[0].score - found.rows[1].score) < 0.02


def test_registers_that_hardly_differ_are_read_as_well():
    """A network with random weights gives registers that differ by a ten-thousandth from sample to sample."""
    made = sources(300)
    close = 1 + 2e-4 * made.tokens["registers"]
    [row, *_] = ranked(specs("concat"), Sources({"registers": close}, made.targets, CLASSES, None, "close")).rows
    assert row.score > 0.9
