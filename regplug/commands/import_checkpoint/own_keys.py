"""Finds readouts in a checkpoint by the names that regplug's own modules give them, under any prefix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regplug.commands.import_checkpoint.inferring import Constructor, Inferred, Shapes, infer_options
from regplug.errors import BundleError, PluginError, SpecError, closest
from regplug.registry.entries import CheckpointSite, FiLMEntry, ReadoutEntry
from regplug.registry.references import load_reference
from regplug.registry.registry import Registry

HELD = ("readout", "film")
MOST_NAMED = 3  # weights in a message


@dataclass(frozen=True)
class Asked:
    """What is known of the readouts that are looked for.

    Args:
        owner: The checkpoint, for messages.
        sizes: ``num_registers`` and ``hidden_dim``.
        strategies: What they may be.
        options: The strategy's options, as far as they are given.
        generators: What the FiLM generators behind them may be.
        film_options: The generator's options, as far as they are given.
        readout_only: Whether FiLM generators are left.
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
    """A readout that was found, and the options that no shape tells, at their defaults; a generator's as ``film.x``."""

    site: CheckpointSite
    assumed: Mapping[str, Any]


@dataclass
class _Place:
    """Where weights of a readout or of a module that holds one are: their names, each by the module's own."""

    where: str
    readout: dict[str, str] = field(default_factory=dict)
    film: dict[str, str] = field(default_factory=dict)
    attached: bool = False


def find_own(shapes: Shapes, asked: Asked, registry: Registry) -> list[OwnSite]:
    """What ``AttachedReadout``, ``AttachedConditioner`` and ``Conditioner`` keep, and readouts that nothing holds.

    Args:
        shapes: The shape of each tensor, by name.
        asked: What is looked for.
        registry: Where sizes and options are resolved.

    Raises:
        BundleError: A module of regplug's own lacks a weight, has one more, or one of another shape; by name.
        SpecError: Several strategies or options would do.
    """
    if len(asked.strategies) == 1:
        _check_options(asked.strategies[0], asked)
    places = _holders(shapes)
    inside = {name for place in places for name in (*place.readout.values(), *place.film.values())}
    behind = tuple(f"{_before(place.where)}tokens." for place in places if place.attached)
    found = [_read_holder(shapes, place, asked, registry) for place in places]
    left = [name for name in shapes if name not in inside and not name.startswith(behind)]
    return [*found, *_read_bare(shapes, left, asked)]


def nearest_bare(shapes: Shapes, asked: Asked) -> str | None:
    """Where almost all weights of a readout are that nothing holds, and how they differ; None where nothing is near."""
    best: tuple[int, str] | None = None
    for where, group in _groups(shapes).items():
        for entry in asked.strategies:
            for outline in _outlines(entry, asked):
                different, common = {*outline} ^ {*group}, {*outline} & {*group}
                if common and len(different) <= len(common) and (best is None or len(different) < best[0]):
                    got = {key: shapes[name] for key, name in group.items()}
                    sizes = ", ".join(f"{word}={size}" for word, size in asked.sizes.items())
                    said = f"{where or 'the whole'}: of {entry.name!r} at {sizes}, with {_difference(outline, got)}"
                    best = len(different), said
    return best and best[1]


def _outlines(entry: ReadoutEntry, asked: Asked) -> list[Shapes]:
    try:
        return [outline for _, outline in _constructor(entry, asked.sizes).outlines(asked.options)]
    except PluginError:  # of a package that is not installed
        return []


def _groups(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """All names behind each prefix, each by what comes after it."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        parts = name.split(".")
        for at in range(len(parts)):
            groups.setdefault(".".join(parts[:at]), {})[".".join(parts[at:])] = name
    return groups


def _before(where: str) -> str:
    return f"{where}." if where else ""


def _holders(shapes: Shapes) -> list[_Place]:
    """Each module that holds a readout and what goes with it: tokens, a FiLM generator, or both."""
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
    # a readout may have parts of these names itself
    own = {
        f"{_before(place.where)}{part}." for place in held for part in (*HELD, *(f"conditioner.{one}" for one in HELD))
    }
    return [place for place in held if not f"{place.where}.".startswith(tuple(own))]


def _read_holder(shapes: Shapes, place: _Place, asked: Asked, registry: Registry) -> OwnSite:
    owner = f"{asked.owner} {place.where or 'the whole'}:"
    entry, found = _strategy_of(owner, {key: shapes[name] for key, name in place.readout.items()}, asked)
    generator, film = None, Inferred({}, {})
    if place.film and not asked.readout_only:
        spec = registry.resolve(entry.full_name, **asked.sizes, **found.options)
        generator, film = _generator_of(
            owner, {key: shapes[name] for key, name in place.film.items()}, spec.cond_dim, asked
        )
    return _site(place, entry, found, asked, generator, film)


def _site(
    place: _Place,
    entry: ReadoutEntry,
    found: Inferred,
    asked: Asked,
    generator: FiLMEntry | None = None,
    film: Inferred | None = None,
) -> OwnSite:
    site = CheckpointSite(
        where=place.where,
        strategy=entry.full_name,
        num_registers=asked.sizes["num_registers"],
        hidden_dim=asked.sizes["hidden_dim"],
        options=found.options,
        readout=place.readout,
        film=generator.full_name if generator is not None else None,
        film_options=film.options if film else {},
        film_weights=place.film if generator else {},
    )
    of_film = film.assumed if film else {}
    return OwnSite(site, {**found.assumed, **{f"film.{name}": value for name, value in of_film.items()}})


def _check_options(entry: ReadoutEntry, asked: Asked) -> None:
    known = _constructor(entry, asked.sizes).parameters
    for option, value in asked.options.items():
        if option not in known:
            raise SpecError(
                f"strategy {entry.name!r}: option {option!r}: expected a known option, got {value!r}"
                f"{closest(option, [*known])}."
            )


def _constructor(entry: ReadoutEntry, sizes: Mapping[str, int]) -> Constructor:
    owner = f"strategy {entry.name!r}"
    return Constructor(owner, load_reference(owner, entry.build), sizes, entry.sizes)


def _strategy_of(owner: str, wanted: Shapes, asked: Asked) -> tuple[ReadoutEntry, Inferred]:
    """The one strategy whose weights these are.

    Raises:
        BundleError: There is none: the weights that the nearest has otherwise are named.
        SpecError: There are several.
    """
    fitting, nearest = [], []
    for entry in asked.strategies:
        try:
            constructor = _constructor(entry, asked.sizes)
        except PluginError:  # of a package that is not installed
            continue
        if not set(asked.options) <= set(constructor.parameters):
            continue
        try:
            found = infer_options(constructor, asked.options, wanted)
        except SpecError as error:
            raise SpecError(f"{owner} strategy {entry.name!r}: {error}") from error
        if found is not None:
            fitting.append((entry, found))
        nearest += [(entry, shapes) for _, shapes in constructor.outlines(asked.options) if {*shapes} & {*wanted}]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(entry.full_name for entry, _ in fitting[:6])
        raise SpecError(f"{owner} expected --strategy NAME, as these weights may be those of {names}, got none.")
    sizes = ", ".join(f"{word}={size}" for word, size in asked.sizes.items())
    if not nearest:
        names = ", ".join(entry.name for entry in asked.strategies[:8])
        raise BundleError(f"{owner} expected the weights of a readout ({names}), got {_listed(wanted)}.")
    entry, shapes = min(nearest, key=lambda one: len({*one[1]} ^ {*wanted}))
    raise BundleError(f"{owner} expected the weights of {entry.name!r} at {sizes}, got {_difference(shapes, wanted)}.")


def _generator_of(owner: str, wanted: Shapes, cond_dim: int, asked: Asked) -> tuple[FiLMEntry, Inferred]:
    """The one FiLM generator whose weights these are; raises as ``_strategy_of`` does."""
    fitting, nearest = [], []
    for entry in asked.generators:
        who = f"FiLM generator {entry.name!r}"
        try:
            constructor = Constructor(who, load_reference(who, entry.build), {entry.width: cond_dim})
            found = infer_options(constructor, asked.film_options, wanted)
        except PluginError:  # of a package that is not installed
            continue
        except SpecError as error:
            raise SpecError(f"{owner} {who}: --film: {error}") from error
        if found is not None:
            fitting.append((entry, found))
        nearest += [(entry, shapes) for _, shapes in constructor.outlines(asked.film_options) if {*shapes} & {*wanted}]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(entry.full_name for entry, _ in fitting[:6])
        raise SpecError(f"{owner} expected --film-generator NAME, as this may be {names}, got none.")
    known = ", ".join(entry.name for entry in asked.generators[:6])
    if not nearest:
        raise BundleError(
            f"{owner} expected the weights of a FiLM generator ({known}), got {_listed(wanted)}; use --readout-only."
        )
    entry, shapes = min(nearest, key=lambda one: len({*one[1]} ^ {*wanted}))
    raise BundleError(
        f"{owner} expected the weights of FiLM generator {entry.name!r} for cond_dim {cond_dim}, got "
        f"{_difference(shapes, wanted)}."
    )


def _difference(expected: Shapes, got: Shapes) -> str:
    """What is lacking, what is more than there should be, and if neither, that the sizes are others."""
    missing, more = sorted({*expected} - {*got}), sorted({*got} - {*expected})
    parts = [f"no {_listed(missing)}"] if missing else []
    parts += [f"{_listed(more)} besides"] if more else []
    if not parts:
        parts = [", ".join(f"{name} {list(got[name])}" for name in sorted(got)[:MOST_NAMED])]
    return " and ".join(parts)


def _listed(names: Any) -> str:
    names = sorted(names)
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "") if names else "none"


def _read_bare(shapes: Shapes, names: Sequence[str], asked: Asked) -> list[OwnSite]:
    """Readouts that no module of regplug's holds: all that is behind one prefix is one's weights."""
    sets = {frozenset(outline) for entry in asked.strategies for outline in _outlines(entry, asked)}
    found = []
    for where, group in _groups(names).items():
        if frozenset(group) not in sets:
            continue
        try:
            entry, inferred = _strategy_of(
                f"{asked.owner} {where or 'the whole'}:", {key: shapes[name] for key, name in group.items()}, asked
            )
        except BundleError:  # the same names, and other sizes: something else
            continue
        found.append(_site(_Place(where, group), entry, inferred, asked))
    return found
