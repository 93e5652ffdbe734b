"""Which strategy, or which FiLM generator, has given weights: by their names and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from regplug.commands.import_checkpoint.option_inference import Constructor, Inferred, Shapes, infer_options
from regplug.errors import BundleError, PluginError, SpecError, shorten
from regplug.registry.entries import FiLMEntry, ReadoutEntry
from regplug.registry.references import load_reference

MAX_WEIGHTS, MAX_NAMES = 3, 6  # in a message

Entry = TypeVar("Entry", bound=ReadoutEntry | FiLMEntry)


@dataclass(frozen=True)
class Candidates(Generic[Entry]):
    """The strategies, or the FiLM generators, that weights may belong to.

    Args:
        label: "strategy" or "FiLM generator".
        one: One of them, in a message.
        option: The option of the command line that chooses one.
        at: At which sizes, in a message.
        entries: The candidates.
        options: Their options, as far as they are given.
        constructor: The constructor of a candidate.
        of_options: Before a message about their options.
        hint: What else to do, where there are none.
    """

    label: str
    one: str
    option: str
    at: str
    entries: Sequence[Entry]
    options: Mapping[str, Any]
    constructor: Callable[[Entry], Constructor]
    of_options: str = ""
    hint: str = ""


def strategy_constructor(entry: ReadoutEntry, sizes: Mapping[str, int]) -> Constructor:
    """The class of a strategy."""
    owner = f"strategy {entry.name!r}"
    return Constructor(owner, load_reference(owner, entry.build), sizes, entry.sizes)


def film_constructor(entry: FiLMEntry, cond_dim: int) -> Constructor:
    """The class of a FiLM generator."""
    owner = f"FiLM generator {entry.name!r}"
    return Constructor(owner, load_reference(owner, entry.build), {entry.width: cond_dim})


def identify(owner: str, weights: Shapes, kind: Candidates[Entry]) -> tuple[Entry, Inferred]:
    """The one entry that has these weights, and its options.

    Raises:
        BundleError: No entry has; the message names the weights that differ from the nearest entry's.
        SpecError: Several entries or options have.
    """
    fitting: list[tuple[Entry, Inferred]] = []
    nearest: list[tuple[Entry, Shapes]] = []
    for entry in kind.entries:
        try:
            constructor = kind.constructor(entry)
        except PluginError:  # the entry is for a package that is not installed
            continue
        if not set(kind.options) <= set(constructor.parameters):
            continue
        try:
            found = infer_options(constructor, kind.options, weights)
        except SpecError as error:
            raise SpecError(f"{owner}: {kind.label} {entry.name!r}: {kind.of_options}{error}") from error
        if found is not None:
            fitting.append((entry, found))
        outlines = (shapes for _, shapes in constructor.outlines(kind.options))
        nearest += [(entry, one) for one in outlines if set(one) & set(weights)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(entry.full_name for entry, _ in fitting[:MAX_NAMES])
        raise SpecError(f"{owner}: expected {kind.option}, as these weights may be those of {names}, got none.")
    if not nearest:
        names = ", ".join(entry.name for entry in kind.entries[:MAX_NAMES])
        raise BundleError(
            f"{owner}: expected the weights of {kind.one} ({names}), got {list_names(weights)}{kind.hint}."
        )
    entry, shapes = min(nearest, key=lambda one: len({*one[1]} ^ {*weights}))
    raise BundleError(
        f"{owner}: expected the weights of {kind.label} {entry.name!r}{kind.at}, got {difference(shapes, weights)}."
    )


def difference(expected: Shapes, got: Shapes) -> str:
    """The weights that are missing and those that are too many; if none, the sizes of the weights."""
    missing, more = sorted({*expected} - {*got}), sorted({*got} - {*expected})
    parts = [f"no {list_names(missing)}"] if missing else []
    parts += [f"extra {list_names(more)}"] if more else []
    if not parts:
        parts = [", ".join(f"{name} {list(got[name])}" for name in sorted(got)[:MAX_WEIGHTS])]
    return " and ".join(parts)


def list_names(names: Iterable[str]) -> str:
    """The first few names, sorted, and how many more there are."""
    return shorten(sorted(names), MAX_WEIGHTS) or "none"
