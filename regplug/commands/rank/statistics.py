"""Compares strategies by their scores on the same samples: simultaneous intervals, a winner or a tie.

What an interval is for: the expected difference between two strategies' scores on new samples, when each is trained as
here on as many samples. Scores of one sample are paired, over all seeds. The variance of a difference is

    v = w * var_b(d_b) / n + pooled seed variance,    d_b = mean over seeds of (score of i - score of j) of sample b

with w = 1, or 1 + 1 / (folds - 1) where there are fewer than ten training samples for each number of the wider vector:
folds share training samples, which a variance over samples does not see (Bengio and Grandvalet, 2004; the factor is
that of Nadeau and Bengio, 2003, for the part that samples explain). The seed variance, of splits, initial weights and
order, is pooled over all pairs: a pair's own has too few degrees of freedom. All pairs' intervals hold at once, by the
quantile of the largest |t| under a multiplier bootstrap (Chernozhukov et al., 2013). So a strategy wins only if it
differs from every other one, as Hsu's comparisons with the best do it (1984).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist

import torch
from torch import Tensor

from regplug.errors import SpecError
from regplug.registry.integers import is_positive_int

LEVEL = 0.95
DRAWS = 4000
LEAST_SAMPLES = 30  # below, quantiles of sums are not those of normal numbers
ENOUGH_SAMPLES = 10  # for training, for each number of a vector
LEAST_DISCORDANT = 10  # samples that two strategies answer differently, for a variance to be trusted


@dataclass(frozen=True)
class Difference:
    """The scores of two strategies compared: ``first`` minus ``second``.

    Args:
        first: Its place among the names.
        second: Its place among the names.
        difference: Of the mean scores.
        low: The simultaneous interval's lower end.
        high: The simultaneous interval's upper end.
        standard_error: Of the difference.
        discordant: Samples on which their scores differ.
    """

    first: int
    second: int
    difference: float
    low: float
    high: float
    standard_error: float
    discordant: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval does not hold zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """All pairs compared, and what follows.

    Args:
        names: Of the strategies and references, in the order of the scores.
        candidates: How many of them, from the first on, may win; the others are references.
        means: The mean score of each.
        pairs: Every pair, the first one being the earlier name.
        critical: The factor of the standard error in an interval.
        winner: The candidate that is better than every other candidate; None if no one is.
        may_be_best: The candidates that no other candidate is better than.
        largest_difference: The largest difference between candidates that the intervals still allow.
        widened: Those whose vectors are so wide for the samples that their intervals are wider.
    """

    names: tuple[str, ...]
    candidates: int
    means: tuple[float, ...]
    pairs: tuple[Difference, ...]
    critical: float
    winner: int | None
    may_be_best: tuple[int, ...]
    largest_difference: float
    widened: tuple[int, ...] = ()

    def sentence(self, in_units: Callable[[float], str], margin: float | None = None) -> str:
        """Who won, or who cannot be told apart, and by how much they may still differ.

        Args:
            in_units: A difference as text.
            margin: A difference that does not matter.
        """
        if self.candidates == 1:
            return f"{self.names[0]} has no other strategy to be compared with."
        if self.winner is not None:
            others = (place for place in range(self.candidates) if place != self.winner)
            least = min((self.of(self.winner, other).low for other in others), default=0.0)
            return f"{self.names[self.winner]} is better than every other strategy, by at least {in_units(least)}."
        if len(self.may_be_best) == self.candidates:
            tie = "No difference between the strategies was found."
        else:
            tie = f"No winner: {', '.join(self.names[place] for place in self.may_be_best)} cannot be told apart."
        tied = [one for one in self.pairs if {one.first, one.second} <= set(self.may_be_best)]
        widest = max((max(abs(one.low), abs(one.high)) for one in tied), default=math.nan)
        if margin is not None and widest <= margin:
            return f"{tie} They are equal within {in_units(margin)}."
        return f"{tie} Differences of up to {in_units(widest)} remain possible."

    def of(self, first: int, second: int) -> Difference:
        """The difference between two of them, in this order."""
        low, high = sorted((first, second))
        found = next(one for one in self.pairs if (one.first, one.second) == (low, high))
        if low == first:
            return found
        return Difference(
            first, second, -found.difference, -found.high, -found.low, found.standard_error, found.discordant
        )


def compare_scores(
    scores: Tensor,
    names: Sequence[str],
    widths: Sequence[int],
    folds: int,
    *,
    candidates: int | None = None,
    groups: Tensor | None = None,
) -> Comparison:
    """Compare strategies by their scores on the same samples.

    Args:
        scores: ``[S, n, K]``: the score of each of K strategies for each sample, out of fold, for each seed; more is
            better. Means over samples are compared, so accuracy, a squared error or a log-likelihood will do, but not a
            rank statistic as AUC.
        names: K names.
        widths: The width of each strategy's vector.
        folds: How many folds each seed's samples were split into.
        candidates: How many strategies may win, from the first on; all by default.
        groups: ``[n]``: samples with one number are not independent, and count as one.

    Raises:
        SpecError: The scores have another shape or are not finite, or there are fewer than 30 samples or groups.
    """
    candidates = len(names) if candidates is None else candidates
    scores = _checked(scores, names, widths, folds, candidates, groups)
    if groups is not None:
        scores = _summed(scores, groups)
    seeds, count, _ = scores.shape
    if count < LEAST_SAMPLES:
        word = "samples" if groups is None else "groups"
        raise SpecError(f"scores: expected at least {LEAST_SAMPLES} independent {word}, got {count}.")
    places = list(combinations(range(len(names)), 2))
    means = scores.mean((0, 1))
    if not places:
        return Comparison(tuple(names), candidates, (means.item(),), (), math.nan, None, (0,), 0.0)
    per_seed = torch.stack([scores[:, :, i] - scores[:, :, j] for i, j in places], 2)
    paired = per_seed.mean(0)
    discordant = (per_seed != 0).any(0).sum(0)
    variance = _variance_of_samples(paired, discordant, scores)
    n_train = count * (folds - 1) / folds
    inflation = torch.tensor([_inflation(n_train, max(widths[i], widths[j]), folds) for i, j in places])
    of_seeds = per_seed.mean(1).var(0, correction=1).mean() / seeds if seeds > 1 else torch.zeros(())
    errors = (inflation * variance / count + of_seeds).sqrt()
    critical = _critical(paired)
    pairs = [
        Difference(i, j, value, value - critical * error, value + critical * error, error, int(number))
        for (i, j), value, error, number in zip(
            places, paired.mean(0).tolist(), errors.tolist(), discordant.tolist(), strict=True
        )
    ]
    wide = tuple(place for place, width in enumerate(widths) if _inflation(n_train, width, folds) > 1)
    return replace(_concluded(tuple(names), candidates, tuple(means.tolist()), tuple(pairs), critical), widened=wide)


def _checked(
    scores: Tensor, names: Sequence[str], widths: Sequence[int], folds: int, candidates: int, groups: Tensor | None
) -> Tensor:
    if not isinstance(scores, Tensor):
        raise SpecError(f"scores: expected a tensor, got {type(scores).__name__}; use torch.from_numpy.")
    if scores.dim() != 3 or scores.shape[2] != len(names) or len(widths) != len(names) or scores.numel() == 0:
        raise SpecError(
            f"scores: expected [seeds, samples, {len(names)}], one for each name and width, got {list(scores.shape)}."
        )
    if len(set(names)) < len(names):
        raise SpecError(f"names: expected different ones, got {', '.join(names)}.")
    if not is_positive_int(folds) or folds < 2:
        raise SpecError(f"folds: expected an integer of at least 2, got {folds!r}.")
    if not is_positive_int(candidates) or candidates > len(names):
        raise SpecError(f"candidates: expected 1 to {len(names)}, got {candidates!r}.")
    if groups is not None and not (isinstance(groups, Tensor) and groups.shape == scores.shape[1:2]):
        got = list(groups.shape) if isinstance(groups, Tensor) else type(groups).__name__
        raise SpecError(f"groups: expected a tensor [{scores.shape[1]}], a number for each sample, got {got}.")
    scores = scores.double()
    if not bool(scores.isfinite().all()):
        raise SpecError("scores: expected finite numbers, got NaN or infinity.")
    return scores


def _summed(scores: Tensor, groups: Tensor) -> Tensor:
    """Scores of groups, scaled so that their mean is the mean over samples."""
    _, index = groups.unique(return_inverse=True)
    count = int(index.max()) + 1
    sums = scores.new_zeros(scores.shape[0], count, scores.shape[2])
    return sums.index_add_(1, index, scores) * (count / len(groups))


def _inflation(n_train: float, width: int, folds: int) -> float:
    return 1.0 if n_train >= ENOUGH_SAMPLES * width else 1 + 1 / (folds - 1)


def _variance_of_samples(paired: Tensor, discordant: Tensor, scores: Tensor) -> Tensor:
    """The variance of each pair's differences; of nearly identical answers, as if two more samples were discordant.

    The two, one each way, are Agresti and Min's (2005): no difference seen in some samples is not a variance of zero.
    Where scores are right or wrong, that holds for answers without any difference too.
    """
    variance = paired.var(0, correction=1)
    lowest, highest = scores.min(), scores.max()
    is_binary = bool(((scores == lowest) | (scores == highest)).all())
    step = highest - lowest if bool(highest > lowest) else torch.ones_like(lowest)
    unit = step.expand_as(variance) if is_binary else paired.abs().amax(0)
    few = (discordant < LEAST_DISCORDANT) & ((discordant > 0) | is_binary)
    return torch.where(few, variance + 2 * unit**2 / len(paired), variance)


def _critical(paired: Tensor) -> float:
    """The quantile of the largest |t| of all pairs that differ at all; at least that of one normal number."""
    least = NormalDist().inv_cdf((1 + LEVEL) / 2)
    deviation = paired.std(0, correction=1)
    differs = deviation > 0
    if not bool(differs.any()):
        return least
    centred = (paired - paired.mean(0))[:, differs] / deviation[differs]
    generator = torch.Generator().manual_seed(0)
    largest = []
    for _ in range(DRAWS // 500):
        drawn = torch.randn(500, len(centred), generator=generator, dtype=centred.dtype)
        largest.append((drawn @ centred / math.sqrt(len(centred))).abs().amax(1))
    return max(least, float(torch.cat(largest).quantile(LEVEL)))


def _concluded(
    names: tuple[str, ...],
    candidates: int,
    means: tuple[float, ...],
    pairs: tuple[Difference, ...],
    critical: float,
) -> Comparison:
    among = [one for one in pairs if one.second < candidates]
    beaten = {one.second if one.low > 0 else one.first for one in among if one.is_clear}
    may_be_best = tuple(place for place in range(candidates) if place not in beaten)
    best = may_be_best[0] if len(may_be_best) == 1 else None
    wins = best is not None and all(one.is_clear for one in among if best in (one.first, one.second))
    widest = max((max(abs(one.low), abs(one.high)) for one in among), default=0.0)
    return Comparison(names, candidates, means, pairs, critical, best if wins else None, may_be_best, widest)
