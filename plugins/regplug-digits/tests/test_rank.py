"""Strategies compared by cross-validation: each image is scored by networks that have not seen it."""

import json

import torch
from click.testing import CliRunner

from regplug_digits import rank


def test_each_image_is_held_out_once_and_every_class_is_in_every_fold():
    digits = rank.all_digits()
    folds = rank.folds_of(digits.labels, 5, seed=0)
    assert sorted(place for _, test in folds for place in test.tolist()) == list(range(len(digits)))
    assert all(not set(train.tolist()) & set(test.tolist()) for train, test in folds)
    assert all(digits.labels[torch.from_numpy(test)].bincount(minlength=10).min() > 30 for _, test in folds)


def test_a_short_run_says_how_far_strategies_are_from_pixels():
    words = ["--readout", "mean", "--seeds", "1", "--folds", "2", "--epochs", "1", "--jobs", "1", "--json"]
    done = CliRunner().invoke(rank.main, words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["schema"] == "regplug-digits/rank/1"
    assert found["accuracy"][rank.PIXELS]["own"] > 0.9
    assert {"own", "other", "mean", "zeros"} <= set(found["accuracy"]["mean"])
    [pair] = found["pairs"]
    assert pair["low"] <= pair["difference"] <= pair["high"] < 0  # one epoch is not enough
