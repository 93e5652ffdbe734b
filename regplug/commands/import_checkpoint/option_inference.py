"""Infers a constructor's options from the names and shapes of its weights."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from regplug.errors import SpecError
from regplug.registry.cond_dim import construct
from regplug.registry.options import bind, parameters_of

Shapes = Mapping[str, tuple[int, ...]]
MAX_SWITCHES = 3
TRIALS = (1, 2, 4, 8, 16)
MAX_TRIED = 128  # of an integer that shapes do not depend on linearly, such as a ratio


@dataclass(frozen=True)
class Inferred:
    """What names and shapes show about a constructor's options.

    Args:
        options: The given options, and the inferred ones that differ from the default.
        assumed: The options that no shape depends on, at their defaults.
    """

    options: Mapping[str, Any]
    assumed: Mapping[str, Any]


class Constructor:
    """A class, and the names and shapes of its weights for any options; nothing is allocated.

    Args:
        owner: The strategy or FiLM generator, for messages.
        build: The class.
        sizes: The arguments that are known.
        words: The constructor's own names for sizes, as ``bind`` takes them.
    """

    def __init__(
        self, owner: str, build: Callable[..., Any], sizes: Mapping[str, int], words: Mapping[str, str] | None = None
    ) -> None:
        self._owner, self._build, self._sizes, self._words = owner, build, sizes, words or {}
        self.parameters = {
            name: parameter
            for name, parameter in parameters_of(owner, build).items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and name not in sizes
            and name not in self._words
        }

    def shapes(self, options: Mapping[str, Any]) -> Shapes | None:
        """The shapes of its weights with these options; None if it refuses them."""
        try:
            with warnings.catch_warnings(), torch.device("meta"):
                warnings.simplefilter("ignore")
                arguments = bind(self._owner, self._build, self._sizes, options, self._words)
                module = construct(self._owner, self._build, arguments)
        except SpecError:
            return None
        return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}

    def outlines(self, given: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], Shapes]]:
        """Options, with arbitrary numbers for required ones that are not given, and the shapes that result.

        One for each setting of its switches that it accepts, because switches decide which weights exist.
        """
        needed = [
            name
            for name, one in self.parameters.items()
            if one.default is inspect.Parameter.empty and name not in given
        ]
        switches = [
            name for name, one in self.parameters.items() if isinstance(one.default, bool) and name not in given
        ][:MAX_SWITCHES]
        own = tuple(self.parameters[name].default for name in switches)
        settings = sorted(itertools.product((True, False), repeat=len(switches)), key=lambda one: one != own)
        for setting in settings:
            for trial in TRIALS:
                options = {**given, **dict(zip(switches, setting, strict=True)), **dict.fromkeys(needed, trial)}
                if (shapes := self.shapes(options)) is not None:
                    yield options, shapes
                    break


def infer_options(constructor: Constructor, given: Mapping[str, Any], wanted: Shapes) -> Inferred | None:
    """The options that give a constructor's weights the wanted names and shapes; None if there are none.

    Raises:
        SpecError: Several would; the message says which options to give.
    """
    for outline, shapes in constructor.outlines(given):
        if set(shapes) != set(wanted):
            continue
        fixed = frozenset(given)
        found = _solve(constructor, outline, fixed, wanted)
        if found is None:
            found = _search(constructor, outline, fixed, wanted)
        if found is None:
            continue
        _refuse_several(constructor, given, found, wanted)
        return _inferred(constructor, given, found)
    return None


def _solve(
    constructor: Constructor, outline: Mapping[str, Any], fixed: frozenset[str], wanted: Shapes
) -> dict[str, Any] | None:
    """The numbers that give the wanted shapes, each computed from a size that depends on it linearly."""
    options = dict(outline)
    numbers = _numbers(constructor, options, fixed)
    for _ in range(2):  # the second round knows the other numbers
        for name in numbers:
            if constructor.shapes(options) == wanted:
                return options
            number = _solve_linear(constructor, options, name, wanted)
            if number is not None:
                options[name] = number
    return options if constructor.shapes(options) == wanted else None


def _search(
    constructor: Constructor, outline: Mapping[str, Any], fixed: frozenset[str], wanted: Shapes
) -> dict[str, Any] | None:
    """As ``_solve``, but by trying values of one number."""
    for name in _numbers(constructor, outline, fixed):
        for number in range(1, MAX_TRIED + 1):
            if constructor.shapes({**outline, name: number}) == wanted:
                return {**outline, name: number}
    return None


def _numbers(constructor: Constructor, options: Mapping[str, Any], fixed: frozenset[str]) -> list[str]:
    return [name for name in constructor.parameters if name not in fixed and _is_number(constructor, options, name)]


def _is_number(constructor: Constructor, options: Mapping[str, Any], name: str) -> bool:
    value = options.get(name, constructor.parameters[name].default)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _solve_linear(
    constructor: Constructor, options: Mapping[str, Any], name: str, wanted: Shapes
) -> int | float | None:
    for first, second, before, after in _two_outlines(constructor, options, name):
        for weight, shape in after.items():
            for at, size in enumerate(shape):
                same_rank = len(before.get(weight, ())) == len(wanted.get(weight, ())) == len(shape)
                if not same_rank or size == before[weight][at]:
                    continue
                slope = (size - before[weight][at]) / (second - first)
                number = first + (wanted[weight][at] - before[weight][at]) / slope
                if isinstance(first, float):
                    return number if number > 0 else None
                return int(number) if number >= 1 and number == int(number) else None
        return None
    return None


def _two_outlines(
    constructor: Constructor, options: Mapping[str, Any], name: str
) -> Iterator[tuple[Any, Any, Shapes, Shapes]]:
    """Two values of an option that the constructor accepts, and the shapes that result."""
    value = options.get(name, constructor.parameters[name].default)
    for first, second in ((value, 2 * value), (value, value + 1), *itertools.pairwise(TRIALS)):
        before = constructor.shapes({**options, name: first})
        after = constructor.shapes({**options, name: second})
        if before is not None and after is not None and first != second:
            yield first, second, before, after


def _refuse_several(
    constructor: Constructor, given: Mapping[str, Any], found: Mapping[str, Any], wanted: Shapes
) -> None:
    """Refuse numbers that shapes determine only together, such as the two factors of a product."""
    determined = [
        name
        for name, one in constructor.parameters.items()
        if name not in given and _is_number(constructor, found, name) and found.get(name, one.default) is not None
    ]
    determined = [name for name in determined if _depends(constructor, found, name)]
    if len(determined) < 2:
        return
    for name in determined:
        value = found.get(name, constructor.parameters[name].default)
        for other in (1, 2, value + 1, 2 * value):
            if other == value or isinstance(value, float):
                continue
            changed = _solve(constructor, {**found, name: other}, frozenset({*given, name}), wanted)
            if changed is not None:
                differing = [one for one in determined if changed.get(one) != found.get(one)]
                raise SpecError(
                    f"expected option {' or '.join(differing)}, as the shapes determine them only together, got none."
                )


def _depends(constructor: Constructor, options: Mapping[str, Any], name: str) -> bool:
    return any(before != after for _, _, before, after in _two_outlines(constructor, options, name))


def _inferred(constructor: Constructor, given: Mapping[str, Any], found: Mapping[str, Any]) -> Inferred:
    options, assumed = dict(given), {}
    for name, parameter in constructor.parameters.items():
        if name in given:
            continue
        value = found.get(name, parameter.default)
        if isinstance(value, bool):
            determined = constructor.shapes({**found, name: not value}) != constructor.shapes(found)
        else:
            determined = _is_number(constructor, found, name) and _depends(constructor, found, name)
        if determined and value != parameter.default:
            options[name] = value
        elif not determined and parameter.default is not inspect.Parameter.empty:
            assumed[name] = parameter.default
    return Inferred(options, assumed)
