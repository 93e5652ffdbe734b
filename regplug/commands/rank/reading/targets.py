"""From labels, as data hold them, to what is predicted; wrong labels are refused before any token is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regplug.commands.rank.choices import CLASSIFICATION, REGRESSION, TASKS
from regplug.commands.rank.statistics import LEAST_SAMPLES
from regplug.errors import SpecError, clip, shorten

MAX_CLASSES = 100  # more distinct integers are numbers to predict, and more distinct texts a wrong column


@dataclass(frozen=True)
class Targets:
    """What is predicted.

    Args:
        task: ``"classification"`` or ``"regression"``.
        values: ``[n]`` int64, an index of ``classes``; or ``[n, K]`` float64.
        classes: The names of the classes in order; None for regression.
    """

    task: str
    values: Tensor
    classes: tuple[str, ...] | None


def make_targets(
    owner: str,
    labels: Any,
    task: str | None = None,
    folds: int = 5,
    names: Sequence[str] | None = None,
    groups: Tensor | None = None,
) -> Targets:
    """What is predicted, of labels in the samples' order.

    Args:
        owner: The data, for messages.
        labels: Texts, integers, bools or floats: a list, or an array ``[n]`` or ``[n, K]``.
        task: ``"classification"`` or ``"regression"``; None for what the labels look like.
        folds: How many parts the samples are split into.
        names: What integer labels 0, 1, ... are called, if the data say it.
        groups: Samples of one group stay in one fold; there must be as many groups as folds.

    Raises:
        SpecError: There are no labels, or too few labels or groups; one is missing or not a number; there is only one
            class or one value, or a class has fewer samples than there are folds.
    """
    if task is not None and task not in TASKS:
        raise SpecError(f"task: expected {' or '.join(TASKS)}, got {task!r}.")
    values = _array_of(owner, labels)
    _check_count(owner, len(values), folds, groups)
    _check_complete(owner, values)
    if values.ndim == 2 and values.shape[1] == 1 and values.dtype.kind != "f":
        values = values[:, 0]
    if task is None:
        task = _task_of(owner, values)
    return _classes(owner, values, folds, names) if task == CLASSIFICATION else _numbers(owner, values)


def group_numbers(owner: str, groups: Any, count: int) -> Tensor:
    """The groups ``[n]``, any texts or integers, as int64 from 0.

    Raises:
        SpecError: There is not one group for each sample, or one is missing.
    """
    values = _array_of(f"{owner}: groups", groups)
    if values.ndim != 1 or len(values) != count:
        raise SpecError(f"{owner}: groups: expected one for each of {count} samples, got {list(values.shape)}.")
    _check_complete(f"{owner}: groups", values)
    return torch.from_numpy(np.unique(values, return_inverse=True)[1].astype(np.int64))


def _array_of(owner: str, labels: Any) -> np.ndarray:
    if labels is None or len(labels) == 0:
        raise SpecError(f"{owner}: labels: expected one for each sample, got none; name them with --labels.")
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = (labels.double() if labels.is_floating_point() else labels).numpy()
    if isinstance(labels, np.ndarray) and labels.dtype != object:
        return labels
    missing = next((row for row, one in enumerate(labels) if one is None), None)
    if missing is not None:
        raise _missing(owner, missing, "none")
    if any(isinstance(one, (str, bytes)) for one in labels):
        other = next((one for one in labels if not isinstance(one, str)), None)
        if other is not None:
            raise SpecError(f"{owner}: labels: expected all to be texts, or all numbers, got {clip(repr(other), 60)}.")
        return np.array(labels, dtype=str)
    try:
        return np.array(labels)
    except (ValueError, TypeError, OverflowError) as error:  # rows of different lengths
        raise SpecError(
            f"{owner}: labels: expected K numbers for each sample, got rows of different lengths."
        ) from error


def _missing(owner: str, row: int, got: str) -> SpecError:
    return SpecError(
        f"{owner}: labels: expected a label for each sample, got {got} in row {row} (counted from 0); "
        "label it, or leave it out."
    )


def _check_count(owner: str, count: int, folds: int, groups: Tensor | None) -> None:
    if count < folds:
        raise SpecError(f"{owner}: expected at least as many samples as folds ({folds}), got {count}.")
    if count < LEAST_SAMPLES:
        raise SpecError(
            f"{owner}: expected at least {LEAST_SAMPLES} samples, because intervals of fewer are not valid, got "
            f"{count}."
        )
    if groups is None:
        return
    distinct = len(groups.unique())
    if distinct < LEAST_SAMPLES:
        raise SpecError(
            f"{owner}: groups: expected at least {LEAST_SAMPLES}, because intervals of fewer are not valid, got "
            f"{distinct}."
        )
    if distinct < folds:
        raise SpecError(
            f"{owner}: groups: expected at least one for each of {folds} folds, got {distinct}; use fewer folds."
        )


def _check_complete(owner: str, values: np.ndarray) -> None:
    if values.dtype.kind not in "biufU":
        raise SpecError(f"{owner}: labels: expected texts, integers or floats, got {values.dtype}.")
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] == 0):
        raise SpecError(f"{owner}: labels: expected [n] or [n, K], got {list(values.shape)}.")
    if values.dtype.kind == "f":
        bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
        if bad.any():
            row = int(bad.argmax())
            raise _missing(owner, row, clip(str(values[row]), 60))
    if values.dtype.kind == "U" and values.ndim == 1 and (values == "").any():
        raise _missing(owner, int((values == "").argmax()), "an empty text")


def _task_of(owner: str, values: np.ndarray) -> str:
    if values.dtype.kind == "f" or values.ndim == 2:
        return REGRESSION
    distinct = len(np.unique(values))
    if distinct <= MAX_CLASSES:
        return CLASSIFICATION
    if values.dtype.kind == "U":
        raise SpecError(
            f"{owner}: labels: expected at most {MAX_CLASSES} classes, got {distinct} different texts; "
            f"use --task {CLASSIFICATION} if they are classes, or --labels with another column."
        )
    raise SpecError(
        f"{owner}: labels: expected at most {MAX_CLASSES} classes, or floats, got {distinct} different integers; "
        f"use --task {REGRESSION} if they are numbers, --task {CLASSIFICATION} if they are classes."
    )


def _classes(owner: str, values: np.ndarray, folds: int, names: Sequence[str] | None) -> Targets:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2:
        raise SpecError(f"{owner}: labels: expected one class for each sample, got {list(values.shape)}.")
    if values.dtype.kind == "f" and not (values == np.round(values)).all():
        row = int((values != np.round(values)).argmax())
        raise SpecError(
            f"{owner}: labels: expected classes, got {values[row]:g} in row {row}; use --task {REGRESSION} for numbers."
        )
    distinct, numbers, counts = np.unique(values, return_inverse=True, return_counts=True)
    shown = tuple(_class_name(one, names) for one in distinct.tolist())
    if len(distinct) < 2:
        raise SpecError(f"{owner}: labels: expected at least two classes, got one: {clip(shown[0], 60)!r}.")
    sizes = zip(shown, counts.tolist(), strict=True)
    small = [f"{clip(name, 40)!r} ({count})" for name, count in sizes if count < folds]
    if small:
        raise SpecError(
            f"{owner}: labels: expected at least {folds} samples of each class, one for each fold, got fewer of "
            f"{shorten(small, 3)}; leave these out, or use fewer folds."
        )
    twice = [name for name, count in Counter(shown).items() if count > 1]
    if twice:
        raise SpecError(f"{owner}: labels: expected a different name for each class, got {clip(twice[0], 60)!r} twice.")
    return Targets(CLASSIFICATION, torch.from_numpy(numbers.reshape(-1).astype(np.int64)), shown)


def _class_name(value: Any, names: Sequence[str] | None) -> str:
    if isinstance(value, float):
        value = int(value)
    if names is not None and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return str(names[value])
    return str(value)


def _numbers(owner: str, values: np.ndarray) -> Targets:
    if values.dtype.kind == "U":
        raise SpecError(
            f"{owner}: labels: expected numbers to predict, got the text {clip(str(values.flat[0]), 60)!r}; "
            f"use --task {CLASSIFICATION}."
        )
    numbers = values.astype(np.float64).reshape(len(values), -1)
    constant = numbers.min(0) == numbers.max(0)
    if constant.any():
        column = int(constant.argmax())
        which = f"target {column}" if numbers.shape[1] > 1 else "the target"
        raise SpecError(
            f"{owner}: labels: expected numbers that vary, got {which} = {numbers[0, column]:g} everywhere."
        )
    largest = float(np.abs(numbers).max())
    if largest > float(np.finfo(np.float32).max):
        raise SpecError(f"{owner}: labels: expected numbers within float32's range, got {largest:g}.")
    return Targets(REGRESSION, torch.from_numpy(numbers), None)
