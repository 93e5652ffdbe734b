"""How a join cuts its tokens into groups with one operation, faster than a slice for each; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

Edge = tuple[bool, int]  # whether it counts from the end, and the position: in order in every long sequence


class Cuts(NamedTuple):
    """The pieces of a sequence of T tokens, in order; some may belong to no group.

    Args:
        sizes: Tokens in each piece; for the one that depends on T, how many more than T.
        rest: Which piece depends on T; None if none does.
        places: For each group, which piece it is.
    """

    sizes: list[int]
    rest: int | None
    places: list[int]


def cuts_of(spans: Sequence[tuple[int, int | None]], num_tokens: int | None, min_tokens: int) -> Cuts | None:
    """The cuts for groups of tokens; None if two groups have some of their tokens in common, but not all,
    or the order of their ends depends on T.

    Args:
        spans: For each group start and stop, as in ``tokens[:, start:stop]``.
        num_tokens: T; None for any, and only then may positions count from the end.
        min_tokens: The smallest T.

    Example:
        >>> cuts_of([(0, 1), (5, None)], None, 6)
        Cuts(sizes=[1, 4, -5], rest=2, places=[0, 2])
    """
    end = (True, 0) if num_tokens is None else (False, num_tokens)
    groups = [((start < 0, start), end if stop is None else (stop < 0, stop)) for start, stop in spans]
    edges: list[Edge] = [(False, 0)]
    for start, stop in sorted(set(groups)):
        if start < edges[-1] or stop <= start:
            return None
        edges += [stop] if start == edges[-1] else [start, stop]
    if edges[-1] != end:
        edges.append(end)
    sizes = [stop[1] - start[1] for start, stop in pairwise(edges)]
    rest = next((i for i, (start, stop) in enumerate(pairwise(edges)) if start[0] != stop[0]), None)
    if rest is not None and min_tokens + sizes[rest] < 0:  # in short sequences groups from both ends overlap
        return None
    return Cuts(sizes, rest, [edges.index(start) for start, _ in groups])
