"""Finds a width as a formula of the sizes: measured at several, fitted exactly, checked at others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product
from math import gcd, prod

UNKNOWN = "unknown"
MAX_TERMS = 4
MAX_POWER, MAX_DEGREE = 2, 3
MAX_PRIME = 1000  # a factor without smaller primes counts as one prime
MAX_SHOWN = 5
SMALL_SIZES = 16

Sizes = tuple[int, ...]
Polynomial = Mapping[tuple[int, ...], Fraction]  # powers of the sizes -> coefficient


@dataclass(frozen=True)
class WidthFormula:
    """A width for all sizes.

    Args:
        formula: In R and D, such as ``"R*D/4"``; ``"unknown"`` if no polynomial fits.
        conditions: What the sizes must satisfy, such as ``"4 divides D"``.
    """

    formula: str
    conditions: tuple[str, ...]


@dataclass(frozen=True)
class _Axis:
    """Which values of one size build while the other one stays: the conditions, and values that do build."""

    conditions: tuple[str, ...]
    values: tuple[int, ...]


def explain(width_at: Callable[[int, int], int | None], num_registers: int, hidden_dim: int) -> WidthFormula:
    """The width as a formula in R and D, and the conditions on them, from measurements alone.

    Args:
        width_at: The width at R and D; None if these sizes are refused.
        num_registers: An R that builds.
        hidden_dim: A D that builds.

    Example:
        >>> explain(lambda R, D: R * D // 4 if D % 4 == 0 else None, 4, 384)
        WidthFormula(formula='R*D/4', conditions=('4 divides D',))
    """
    widths: dict[Sizes, int | None] = {}

    def builds(registers: int, hidden: int) -> bool:
        sizes = (registers, hidden)
        if sizes not in widths:
            widths[sizes] = width_at(*sizes)
        return widths[sizes] is not None

    base = (num_registers, hidden_dim)
    builds(*base)
    of_registers = _axis("R", num_registers, lambda registers: builds(registers, hidden_dim))
    of_hidden = _axis("D", hidden_dim, lambda hidden: builds(num_registers, hidden))
    fitted, held_out = _mixed(of_registers.values, of_hidden.values, base)
    refused = [sizes for sizes in (*fitted, *held_out) if not builds(*sizes)]
    conditions = (*of_registers.conditions, *of_hidden.conditions)
    if refused:  # each size builds alone, but not both together
        conditions = (*conditions, f"some (R, D) refuse: {_listed(refused)}")
    measured = {sizes: width for sizes, width in widths.items() if width is not None}
    if not of_registers.values and not of_hidden.values:
        return WidthFormula(str(measured[base]) if conditions else UNKNOWN, conditions)
    known = {sizes: measured[sizes] for sizes in (base, *fitted) if sizes in measured}
    if len([sizes for sizes in held_out if sizes in measured]) < 2:
        return WidthFormula(UNKNOWN, conditions)
    others = {sizes: width for sizes, width in measured.items() if sizes not in known}
    return WidthFormula(fit(("R", "D"), known, others), conditions)


def fit(words: Sequence[str], known: Mapping[Sizes, int], held_out: Mapping[Sizes, int]) -> str:
    """The polynomial of fewest terms through ``known``, if those held out agree; else ``"unknown"``.

    Coefficients are exact fractions. ``known`` has at least one width more than there are terms.

    Args:
        words: The names of the sizes.
        known: Widths to fit, by size.
        held_out: Widths that the polynomial must give too.

    Example:
        >>> fit(("R", "D"), {(1, 5): 15, (2, 3): 12, (3, 7): 35, (5, 2): 14}, {(4, 11): 66, (6, 9): 72})
        'R*D + 2*D'
    """
    powers = [one for one in product(range(MAX_POWER + 1), repeat=len(words)) if sum(one) <= MAX_DEGREE]
    powers.sort(key=sum)
    for terms in range(1, min(MAX_TERMS, len(known) - 1) + 1):
        for chosen in combinations(powers, terms):
            polynomial = _through(chosen, known)
            if polynomial is not None:
                agreed = all(_value(polynomial, sizes) == width for sizes, width in held_out.items())
                return _format(words, polynomial) if agreed else UNKNOWN
    return UNKNOWN


def _through(chosen: Sequence[tuple[int, ...]], known: Mapping[Sizes, int]) -> Polynomial | None:
    """The polynomial of these powers through all known widths, by elimination; None if there is none."""
    rows = [[*(Fraction(_power(sizes, one)) for one in chosen), Fraction(width)] for sizes, width in known.items()]
    for column in range(len(chosen)):
        index = next((index for index in range(column, len(rows)) if rows[index][column]), None)
        if index is None:
            return None
        rows[column], rows[index] = rows[index], rows[column]
        pivot = rows[column] = [value / rows[column][column] for value in rows[column]]
        for other, row in enumerate(rows):
            if other != column and row[column]:
                rows[other] = [value - row[column] * of_pivot for value, of_pivot in zip(row, pivot, strict=True)]
    if any(row[-1] for row in rows[len(chosen) :]):
        return None
    return {one: row[-1] for one, row in zip(chosen, rows, strict=False)}


def _power(sizes: Sizes, powers: tuple[int, ...]) -> int:
    return prod(size**power for size, power in zip(sizes, powers, strict=True))


def _value(polynomial: Polynomial, sizes: Sizes) -> Fraction:
    return sum((factor * _power(sizes, powers) for powers, factor in polynomial.items()), Fraction())


def _format(words: Sequence[str], polynomial: Polynomial) -> str:
    text = ""
    for powers, factor in sorted(polynomial.items(), key=lambda term: (sum(term[0]), term[0]), reverse=True):
        named = [f"{word}^{power}" if power > 1 else word for word, power in zip(words, powers, strict=True) if power]
        number = [] if named and abs(factor.numerator) == 1 else [str(abs(factor.numerator))]
        term = "*".join(number + named) + (f"/{factor.denominator}" if factor.denominator > 1 else "")
        sign = "-" if factor < 0 else "+"
        text += f" {sign} {term}" if text else term if factor > 0 else f"-{term}"
    return text


def _axis(word: str, base: int, builds: Callable[[int], bool]) -> _Axis:
    """Which values of a size build: multiples of a step, from a lowest to a highest one, or no such pattern."""
    tried = {base: True}

    def tries(value: int) -> bool:
        if value not in tried:
            tried[value] = value >= 1 and builds(value)
        return tried[value]

    step = _step(base, tries)
    first = base // step
    far = 8 * first + 89
    lowest = 1 if tries(step) else _edge(first, 1, lambda factor: tries(factor * step))
    highest = far if tries(far * step) else _edge(first, far, lambda factor: tries(factor * step))
    factors = {lowest, lowest + 1, lowest + 2, lowest + 5, first + 1, first + 3, 2 * first + 1, 3 * first + 2, far}
    inside = sorted(factor * step for factor in factors if lowest <= factor <= highest)
    outside = [value for value in (base + 1, base - 1, base + step - 1, base + step // 2) if value % step]
    outside += [(lowest // 2) * step] if lowest > 1 else []
    outside += [(2 * highest + 1) * step] if highest < far else []
    if all(map(tries, inside)) and not any(map(tries, outside)):
        conditions = tuple(_format_axis(word, step, lowest, highest if highest < far else None))
        return _Axis(conditions, tuple(value for value in inside if value != base))
    for value in range(1, SMALL_SIZES):  # no pattern: list at least all small sizes
        tries(value)
    built = sorted(value for value, answer in tried.items() if answer and value != base)
    refused = sorted(value for value, answer in tried.items() if not answer and value >= 1)
    return _Axis((f"some {word} refuse: {_listed(refused)}",) if refused else (), tuple(built))


def _format_axis(word: str, step: int, lowest: int, highest: int | None) -> Iterator[str]:
    if lowest == highest:
        yield f"{word} = {lowest * step}"
        return
    if step > 1:
        yield f"{step} divides {word}"
    if lowest > 1:
        yield f"{word} >= {lowest * step}"
    if highest is not None:
        yield f"{word} <= {highest * step}"


def _step(base: int, builds: Callable[[int], bool]) -> int:
    """What must divide a size: primes are divided out of one that builds, as long as the rest builds."""
    step = base
    for prime in _primes(base):
        while step % prime == 0 and builds(_near(step // prime, base)):
            step //= prime
    return step


def _near(step: int, base: int) -> int:
    """A multiple of ``step`` near ``base``, never below it, without another factor of ``base``.

    So it differs from ``base`` in divisibility only, and no lower bound refuses it.
    """
    scale = -(-base // step)
    while gcd(scale, base) > 1:
        scale += 1
    return step * scale


def _primes(number: int) -> Iterator[int]:
    for prime in range(2, MAX_PRIME):
        if number % prime == 0:
            yield prime
        while number % prime == 0:
            number //= prime
    if number > 1:
        yield number


def _edge(good: int, bad: int, builds: Callable[[int], bool]) -> int:
    """The last value that builds, between one that does and one that does not."""
    while abs(good - bad) > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if builds(middle) else (good, middle)
    return good


def _mixed(first: Sequence[int], second: Sequence[int], base: Sizes) -> tuple[list[Sizes], list[Sizes]]:
    """Pairs to fit, and pairs held out; they share no size with a fitted pair, unless that size has one value."""
    held_out = _paired(first[1::3] or base[:1], second[1::3] or base[1:])
    fitted = _paired(_but_every_third(first) or base[:1], _but_every_third(second) or base[1:])
    return fitted, held_out


def _but_every_third(values: Sequence[int]) -> list[int]:
    return [value for index, value in enumerate(values) if index % 3 != 1]


def _paired(first: Sequence[int], second: Sequence[int]) -> list[Sizes]:
    """Small ones with large ones; the shorter list repeats."""
    pairs = max(len(first), len(second))
    return [(first[index % len(first)], second[-1 - index % len(second)]) for index in range(pairs)]


def _listed(refused: Sequence[object]) -> str:
    more = ", ..." if len(refused) > MAX_SHOWN else ""
    return ", ".join(map(str, refused[:MAX_SHOWN])) + more
