"""Finds readouts in a checkpoint by the names that regplug's own modules give their weights, under any prefix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regplug.commands.import_checkpoint.candidates import (
    Candidates,
    difference,
    film_constructor,
    identify,
    strategy_constructor,
)
from regplug.commands.import_checkpoint.option_inference import Inferred, Shapes
from regplug.errors import BundleError, PluginError, SpecError, closest
from regplug.registry.entries import CheckpointSite, FiLMEntry, ReadoutEntry
from regplug.registry.registry import Registry

HELD = ("readout", "film")


@dataclass(frozen=True)
class Query:
    """What is known about the readouts to find.

    Args:
        owner: The checkpoint, for messages.
        sizes: ``num_registers`` and ``hidden_dim``.
        strategies: The strategies that they may have.
        options: The strategy's options, as far as they are given.
        generators: The FiLM generators that may follow them.
        film_options: The generator's options, as far as they are given.
        readout_only: Whether to leave FiLM generators.
    """

    owner: str
    sizes: Mapping[str, int]
    strategies: Sequence[ReadoutEntry]
    options: Mapping[str, Any]
    generators: Sequence[FiLMEntry]
    film_options: Mapping[str, Any]
    readout_only: bool


@dataclass(frozen=True)
class OwnSite:
    """A readout that was found, and the defaults of options that no shape shows; a generator's as ``film.x``."""

    site: CheckpointSite
    assumed: Mapping[str, Any]


@dataclass
class _Place:
    """A module that is or holds a readout: its weights' names in the checkpoint, by their names in the module."""

    where: str
    readout: dict[str, str] = field(default_factory=dict)
    film: dict[str, str] = field(default_factory=dict)
    attached: bool = False


def find_own(shapes: Shapes, query: Query, registry: Registry) -> list[OwnSite]:
    """The readouts in ``AttachedReadout``, ``AttachedConditioner`` and ``Conditioner``, and bare ones.

    Args:
        shapes: The shape of each tensor, by name.
        query: What is known about them.
        registry: The registry that resolves sizes and options.

    Raises:
        BundleError: One of these modules lacks a weight, or has one too many or of another shape; named.
        SpecError: Several strategies or options fit.
    """
    if len(query.strategies) == 1:
        _check_options(query.strategies[0], query)
    places = _holders(shapes)
    inside = {name for place in places for name in (*place.readout.values(), *place.film.values())}
    behind = tuple(f"{_before(place.where)}tokens." for place in places if place.attached)
    found = [_read_holder(shapes, place, query, registry) for place in places]
    left = [name for name in shapes if name not in inside and not name.startswith(behind)]
    return [*found, *_read_bare(shapes, left, query)]


def nearest_bare(shapes: Shapes, query: Query) -> str | None:
    """The place that has almost all weights of a bare readout, and what differs; None if there is none."""
    best: tuple[int, str] | None = None
    for where, group in _groups(shapes).items():
        for entry in query.strategies:
            for outline in _outlines(entry, query):
                different, common = {*outline} ^ {*group}, {*outline} & {*group}
                if common and len(different) <= len(common) and (best is None or len(different) < best[0]):
                    got = {key: shapes[name] for key, name in group.items()}
                    sizes = ", ".join(f"{word}={size}" for word, size in query.sizes.items())
                    said = f"{where or 'the whole'}: of {entry.name!r} at {sizes}, with {difference(outline, got)}"
                    best = len(different), said
    return best and best[1]


def _outlines(entry: ReadoutEntry, query: Query) -> list[Shapes]:
    try:
        return [outline for _, outline in strategy_constructor(entry, query.sizes).outlines(query.options)]
    except PluginError:  # of a package that is not installed
        return []


def _groups(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The names under each prefix, by their rest after it."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        parts = name.split(".")
        for at in range(len(parts)):
            groups.setdefault(".".join(parts[:at]), {})[".".join(parts[at:])] = name
    return groups


def _before(where: str) -> str:
    return f"{where}." if where else ""


def _holders(shapes: Shapes) -> list[_Place]:
    """Each module that holds a readout together with tokens, a FiLM generator, or both."""
    places: dict[str, _Place] = {}
    with_tokens: set[str] = set()
    for name in shapes:
        parts = name.split(".")
        for at, part in enumerate(parts[:-1]):
            if part == "tokens":
                with_tokens.add(".".join(parts[:at]))
            if part in HELD:
                place = places.setdefault(path := ".".join(parts[:at]), _Place(path))
                getattr(place, part)[".".join(parts[at + 1 :])] = name
    held = []
    for path, place in places.items():
        outer = path.removesuffix("conditioner").removesuffix(".") if path.endswith("conditioner") else path
        place.attached = outer in with_tokens
        if place.attached or (place.readout and place.film):
            place.where = outer if place.attached else path
            held.append(place)
    # a readout may itself have parts with these names
    own = {
        f"{_before(place.where)}{part}." for place in held for part in (*HELD, *(f"conditioner.{one}" for one in HELD))
    }
    return [place for place in held if not f"{place.where}.".startswith(tuple(own))]


def _read_holder(shapes: Shapes, place: _Place, query: Query, registry: Registry) -> OwnSite:
    owner = f"{query.owner}: {place.where or 'the whole'}"
    weights = {key: shapes[name] for key, name in place.readout.items()}
    entry, found = identify(owner, weights, _strategies(query))
    generator, film = None, Inferred({}, {})
    if place.film and not query.readout_only:
        spec = registry.resolve(entry.full_name, **query.sizes, **found.options)
        weights = {key: shapes[name] for key, name in place.film.items()}
        generator, film = identify(owner, weights, _generators(query, spec.cond_dim))
    return _site(place, entry, found, query, generator, film)


def _site(
    place: _Place,
    entry: ReadoutEntry,
    found: Inferred,
    query: Query,
    generator: FiLMEntry | None = None,
    film: Inferred | None = None,
) -> OwnSite:
    site = CheckpointSite(
        where=place.where,
        strategy=entry.full_name,
        num_registers=query.sizes["num_registers"],
        hidden_dim=query.sizes["hidden_dim"],
        options=found.options,
        readout=place.readout,
        film=generator.full_name if generator is not None else None,
        film_options=film.options if film else {},
        film_weights=place.film if generator else {},
    )
    of_film = film.assumed if film else {}
    return OwnSite(site, {**found.assumed, **{f"film.{name}": value for name, value in of_film.items()}})


def _check_options(entry: ReadoutEntry, query: Query) -> None:
    known = strategy_constructor(entry, query.sizes).parameters
    for option, value in query.options.items():
        if option not in known:
            raise SpecError(
                f"strategy {entry.name!r}: option {option!r}: expected a known option, got {value!r}"
                f"{closest(option, [*known])}."
            )


def _strategies(query: Query) -> Candidates[ReadoutEntry]:
    sizes = ", ".join(f"{word}={size}" for word, size in query.sizes.items())
    return Candidates(
        "strategy",
        "a readout",
        "--strategy NAME",
        f" at {sizes}",
        query.strategies,
        query.options,
        lambda entry: strategy_constructor(entry, query.sizes),
    )


def _generators(query: Query, cond_dim: int) -> Candidates[FiLMEntry]:
    return Candidates(
        "FiLM generator",
        "a FiLM generator",
        "--film-generator NAME",
        f" for cond_dim {cond_dim}",
        query.generators,
        query.film_options,
        lambda entry: film_constructor(entry, cond_dim),
        of_options="--film: ",
        hint="; use --readout-only to leave it",
    )


def _read_bare(shapes: Shapes, names: Sequence[str], query: Query) -> list[OwnSite]:
    """Bare readouts, which no module of regplug holds: all names under one prefix are the readout's weights."""
    sets = {frozenset(outline) for entry in query.strategies for outline in _outlines(entry, query)}
    found = []
    for where, group in _groups(names).items():
        if frozenset(group) not in sets:
            continue
        try:
            weights = {key: shapes[name] for key, name in group.items()}
            entry, inferred = identify(f"{query.owner}: {where or 'the whole'}", weights, _strategies(query))
        except BundleError:  # the same names with other sizes: another module
            continue
        found.append(_site(_Place(where, group), entry, inferred, query))
    return found
