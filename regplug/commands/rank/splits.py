"""Splits samples into folds, and a fold's training samples once more; the same for every strategy."""

from __future__ import annotations

import torch
from torch import Tensor


def folds_of(targets: Tensor, groups: Tensor | None, folds: int, seed: int) -> Tensor:
    """The fold of each sample, ``[n]``, from a seed.

    Classes are spread evenly over the folds, each of which has as many samples as the others, or one less. Samples of
    one group are in one fold; then the folds' sizes differ by less than the largest group.

    Args:
        targets: ``[n]`` of integers are classes; other targets are not looked at.
        groups: ``[n]``, or None.
        folds: How many.
        seed: Of the random order.
    """
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    if groups is not None:
        return _by_groups(groups[order], folds)[order.argsort()]
    if targets.dim() == 1 and not targets.is_floating_point():
        order = order[targets[order].argsort(stable=True)]
    fold = torch.empty(len(targets), dtype=torch.int64)
    fold[order] = torch.arange(len(targets)) % folds
    return fold


def _by_groups(groups: Tensor, folds: int) -> Tensor:
    """Groups in the order given, each into the fold that is smallest so far."""
    _, index, sizes = groups.unique(return_inverse=True, return_counts=True)
    fold_of_group = torch.zeros(len(sizes), dtype=torch.int64)
    filled = [0] * folds
    for group in dict.fromkeys(index.tolist()):
        smallest = min(range(folds), key=filled.__getitem__)
        fold_of_group[group] = smallest
        filled[smallest] += int(sizes[group])
    return fold_of_group[index]


def inner_split(train: Tensor, targets: Tensor, groups: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    """Training samples split into those that weights are fitted to, and a seventh that a learning rate is chosen by."""
    fold = folds_of(targets[train], None if groups is None else groups[train], 7, seed)
    return train[fold != 0], train[fold == 0]


def derangement(count: int, seed: int) -> Tensor:
    """Another sample for each of ``count``: a random cycle through all of them."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    other = torch.empty(count, dtype=torch.int64)
    other[order] = order.roll(1)
    return other
