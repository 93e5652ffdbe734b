"""The sizes that an audit starts from, and the others that it tries."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from regplug.errors import SpecError
from regplug.registry.integers import is_positive_int
from regplug.registry.options import parameters_of

LETTERS = {"num_registers": "R", "hidden_dim": "D", "compressed_dim": "c"}
MAX_TRIES = 24  # of sizes changed together; a constructor may refuse most of them


def start_sizes(
    owner: str, build: Callable[..., Any], sizes: Mapping[str, Any], words: Mapping[str, str]
) -> tuple[dict[str, int], list[str]]:
    """The sizes to start from, and which of them the constructor takes.

    Args:
        owner: The network, for messages.
        build: Its constructor.
        sizes: As the user gave them; None for the constructor's default.
        words: The constructor's own names for sizes, each with ours.

    Raises:
        SpecError: A size is not a positive integer or is unknown, or the constructor has no parameter of a given name.
    """
    parameters = parameters_of(owner, build)
    for word, size in words.items():
        if not isinstance(size, str) or size not in LETTERS or word not in parameters:
            raise SpecError(
                f"{owner}: --size: expected a parameter of its constructor with one of {', '.join(LETTERS)}, got "
                f"{word}={size}."
            )
    own = {size: size for size in LETTERS if size in parameters} | {size: word for word, size in words.items()}
    start: dict[str, int] = {}
    for size in LETTERS:
        default = parameters[own[size]].default if size in own else None
        value: Any = default if sizes.get(size) is None else sizes[size]
        may_start = size in own or size != "compressed_dim"
        if is_positive_int(value) and may_start:
            start[size] = value
        elif sizes.get(size) is not None:
            wanted = "a positive integer" if may_start else "a constructor that names it"
            raise SpecError(f"{owner}: {size}: expected {wanted}, got {value!r}.")
        elif size in own and (size != "compressed_dim" or default is inspect.Parameter.empty):
            # c may stay what the network makes it
            use = "-O compressed_dim=c" if size == "compressed_dim" else f"--{size.replace('_', '-')}"
            raise SpecError(f"{owner}: {size}: expected {use}, as its constructor has no size by default, got none.")
    return start, [size for size in own if size in start]


def no_size_error(owner: str, build: Callable[..., Any]) -> SpecError:
    """The error about a constructor that names no size, so that no size can be changed."""
    return SpecError(
        f"{owner}: expected a constructor that names {' or '.join(LETTERS)}, got "
        f"({', '.join(parameters_of(owner, build))}); use --size word=hidden_dim, or a function module:build that "
        "names them."
    )


def alone(start: Mapping[str, int], word: str, device: str) -> list[dict[str, int]]:
    """Sizes to try that differ in one of them.

    ``device`` is where constructors run: on the CPU, weights take memory.
    """
    return [{**start, word: value} for value in _others(word, start[word], device)]


def together(start: Mapping[str, int], words: Sequence[str], device: str) -> list[dict[str, int]]:
    """Sizes to try that differ in all of these, then in each alone."""
    others = {word: list(_others(word, start[word], device)) for word in words}
    found = []
    for turn in range(MAX_TRIES if len(words) > 1 else 0):
        shift = turn // max(map(len, others.values()))  # pairs the values differently in each round
        picked = {w: v[(1 + turn + k * shift) % len(v)] for k, (w, v) in enumerate(others.items())}
        found.append({**start, **picked})
    return found + [one for word in words for one in alone(start, word, device)]


def format_sizes(sizes: Mapping[str, int]) -> str:
    """The sizes in the short form that messages use.

    Example:
        >>> format_sizes({"num_registers": 4, "hidden_dim": 384})
        'R=4, D=384'
    """
    return ", ".join(f"{LETTERS[word]}={size}" for word, size in sizes.items()) or "its own sizes"


def _others(word: str, size: int, device: str) -> Iterator[int]:
    if word == "compressed_dim":  # a network may split its conditioning vector in equal parts, or bound it by D
        yield from (factor * size for factor in (2, 3, 5, 4))
        yield size // 2 if size % 2 == 0 else size + 1
    elif word == "num_registers":
        yield from (size + 1, size + 3, 2 * size, size + 2, 2 * size + 1, 3 * size, 4 * size)
        yield from (size - 1,) if size > 1 else ()
        root = int(size**0.5)  # some networks lay registers out in a square
        yield from (((root + 1) ** 2),) if root * root == size else ()
    elif device == "meta":  # heads and ratios divide a multiple too
        yield from (factor * size for factor in (2, 3, 5, 4, 6))
    else:  # weights take memory there
        yield from (size * 3 // 2, 2 * size, size // 2, 3 * size) if size % 2 == 0 else (2 * size, 3 * size)
