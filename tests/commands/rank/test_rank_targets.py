"""From labels to what is predicted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regplug import SpecError
from regplug.commands.rank.reading.targets import CLASSIFICATION, REGRESSION, group_numbers, make_targets

N = 40


def of(labels, **options):
    return make_targets("data d", labels, **options)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["b", "a"] * 20, ("a", "b")),
        ([7, -3] * 20, ("-3", "7")),
        ([True, False] * 20, ("False", "True")),
        (np.array([2, 1] * 20, dtype=np.uint8), ("1", "2")),
        (torch.tensor([[2], [1]] * 20), ("1", "2")),
        (np.array([[2, 3], [1, 5]] * 20), None),
    ],
)
def test_texts_integers_and_bools_are_classes_and_columns_are_numbers(labels, classes):
    found = of(labels)
    assert found.classes == classes
    if classes:
        assert found.task == CLASSIFICATION
        assert found.values.dtype == torch.int64
        assert found.values.tolist()[:2] == [1, 0]


def test_classes_are_in_the_order_of_their_values_and_not_of_their_texts():
    assert of([10, 9] * 20).classes == ("9", "10")


def test_integer_labels_get_the_names_that_the_data_have():
    assert of([0, 1] * 20, names=["cat", "dog"]).classes == ("cat", "dog")
    assert of([0, 5] * 20, names=["cat", "dog"]).classes == ("cat", "5")


def test_floats_are_numbers_to_predict_and_may_be_several():
    found = of([0.5 * number for number in range(N)])
    assert (found.task, found.values.shape, found.classes) == (REGRESSION, (N, 1), None)
    assert found.values.dtype == torch.float64
    assert of(np.random.default_rng(0).random((N, 3))).values.shape == (N, 3)


def test_the_task_may_be_chosen():
    assert of(list(range(N)), task=REGRESSION).values.shape == (N, 1)
    assert of([1.0, 2.0] * 20, task=CLASSIFICATION).classes == ("1", "2")
    with pytest.raises(SpecError, match=r"^task: expected classification or regression, got 'ranking'\.$"):
        of([1, 2] * 20, task="ranking")


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        (None, {}, "expected one for each sample, got none; name them with --labels"),
        ([], {}, "expected one for each sample, got none"),
        ([1] * N, {}, "expected at least two classes, got one: '1'"),
        (["a"] * N, {}, "expected at least two classes, got one: 'a'"),
        (["a", None] * 20, {}, r"got none in row 1 \(counted from 0\); label it, or leave it out"),
        (["a", ""] * 20, {}, "got an empty text in row 1"),
        ([1.0] * 3 + [float("nan")] + [2.0] * 36, {}, "got nan in row 3"),
        ([1.0, float("inf")] * 20, {}, "got inf in row 1"),
        ([[1.0, 2.0]] * 39 + [[1.0, float("nan")]], {}, r"got \[ 1\. nan\] in row 39"),
        ([2.5] * N, {}, "expected numbers that vary, got the target = 2.5 everywhere"),
        ([[1.0, 2.0 * number] for number in range(N)], {}, "got target 0 = 1 everywhere"),
        ([1, 2, 3, 4], {}, r"expected at least as many samples as folds \(5\), got 4"),
        ([1, 2] * 10, {}, "expected at least 30 samples, because intervals of fewer are not valid, got 20"),
        (["a"] * 36 + ["b"] * 4, {}, r"at least 5 samples of each class.* fewer of 'b' \(4\); leave these out"),
        (list(range(101)), {}, "got 101 different integers; use --task regression if they are numbers"),
        ([str(number) for number in range(101)], {}, "got 101 different texts; use --task classification"),
        (["a", "b"] * 20, {"task": REGRESSION}, "expected numbers to predict, got the text 'a'; use --task class"),
        ([0.5, 1.0] * 20, {"task": CLASSIFICATION}, "expected classes, got 0.5 in row 0; use --task regression"),
        ([[1, 2]] * N, {"task": CLASSIFICATION}, r"expected one class for each sample, got \[40, 2\]"),
        ([[1.0], [1.0, 2.0]] * 20, {}, "expected K numbers for each sample, got rows of"),
        (["a", 1] * 20, {}, "expected all to be texts, or all numbers, got 1"),
        ([1 + 2j, 2] * 20, {}, "expected texts, integers or floats, got complex128"),
        ([0.0, 1e300] * 20, {}, "expected numbers within float32's range, got 1e"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_in_one_line(labels, options, said):
    with pytest.raises(SpecError, match=said) as caught:
        of(labels, **options)
    assert str(caught.value).startswith("data d: ")
    assert "\n" not in str(caught.value)


def test_groups_are_numbered_and_there_must_be_thirty_and_one_for_each_fold():
    groups = group_numbers("data d", ["x", "y", "x"], 3)
    assert groups.tolist() == [0, 1, 0]
    with pytest.raises(SpecError, match=r"groups: expected one for each of 2 samples, got \[3\]"):
        group_numbers("data d", ["x", "y", "x"], 2)
    with pytest.raises(SpecError, match=r"groups: labels: expected a label.*got none in row 1"):
        group_numbers("data d", ["x", None], 2)
    with pytest.raises(SpecError, match=r"groups: expected at least 30, because intervals of fewer are not .*got 2\.$"):
        of([1, 2] * 20, groups=torch.tensor([0, 1] * 20))
    with pytest.raises(SpecError, match=r"groups: expected at least one for each of 35 folds, got 31; use fewer"):
        of([1, 2] * 20, folds=35, groups=torch.arange(40).clamp(max=30))
