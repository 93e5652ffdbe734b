"""Pairs a readout with a FiLM generator: passes its width on, and knows what the generator's pairs mean."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from regplug.errors import NameLookupError, PluginError, SpecError
from regplug.nn.wrappers import unwrapped
from regplug.registry.cond_dim import construct
from regplug.registry.default import default_registry
from regplug.registry.entries import FiLMEntry, check_convention
from regplug.registry.integers import is_int
from regplug.registry.options import bind, parameters_of
from regplug.registry.references import REFERENCE_PATTERN, Reference, check_reference, load_reference, reference_of
from regplug.registry.registry import Registry
from regplug.registry.spec import ReadoutSpec

# names that public FiLM modules give the width of the conditioning vector, tried in this order
WIDTH_WORDS = (
    "cond_dim",
    "global_cond_dim",
    "conditioning_embedding_dim",
    "conditioning_dim",
    "cond_channels",
    "dim_condition",  # x-transformers
    "condition_shape",  # anemoi
    "context_dim",  # aurora
    "llm_dim",  # OpenVLA-OFT
)
OF_ANY_CONTEXT = ("context_dim", "llm_dim")  # may also be the width of a cross-attention's context

APPLIES_ITSELF = (
    "expected forward(conditioning) -> [(gamma, beta), ...], got a module that applies FiLM itself; attach without "
    "film=, then pair: in your own forward, call it with your features and the readout's output."
)


class FilmWidthError(SpecError):
    """A FiLM generator wants another width of conditioning than it gets; ``film`` is the name of its class."""

    def __init__(self, message: str, film: str = "") -> None:
        super().__init__(message)
        self.film = film


@dataclass(frozen=True)
class Convention:
    """What a generator's pairs mean: ``form`` and ``order`` as in ``FiLMEntry``."""

    form: str
    order: str


def pair(
    spec: ReadoutSpec,
    film: Reference | nn.Module,
    *,
    width: str | None = None,
    registry: Registry | None = None,
    **options: Any,
) -> nn.Module:
    """A FiLM generator that takes the readout's conditioning vector.

    Args:
        spec: The readout's spec; its ``cond_dim`` is passed on.
        film: What to build: a registered name (``"kernel-film"``, ``"acme:kernel-film"``), a class, or
            ``"module:Class"``. Or an instance, whose width is then checked.
        width: The constructor's argument for ``cond_dim``; for an instance, the attribute that holds it, dotted if it
            is a layer's (``"mlp.0.in_features"``). Found by the known families and names when None.
        registry: Where families are looked up; the installed plugins when None.
        **options: The other arguments of the constructor.

    Returns:
        The generator itself, without a wrapper.

    Raises:
        NameLookupError: No installed plugin offers a generator of this name.
        PluginError: The plugin that offers it is broken.
        SpecError: The argument for the width is not known, an option does not fit, or the instance takes another
            width.

    Example:
        >>> from regplug.registry.default import resolve
        >>> spec = resolve("mean", num_registers=4, hidden_dim=48)
        >>> pair(spec, "kernel-film", kernel_hidden_dim=32, num_film_layers=3).cond_dim
        48
    """
    if not isinstance(spec, ReadoutSpec):
        raise SpecError(f"pair: spec: expected a ReadoutSpec, got {type(spec).__name__}; use regplug.resolve.")
    if isinstance(film, nn.Module):
        return _paired_instance(spec, film, width, registry, options)
    family = named_film(film, registry) if isinstance(film, str) else None
    if family is not None:
        owner = f"FiLM generator {family.name!r}"
        build = load_reference(owner, family.build)
    else:
        check_reference("FiLM generator", "film", film)
        build = load_reference("FiLM generator", film)
        owner = f"FiLM generator {_name(build)}"
    parameters = parameters_of(owner, build)
    word = width or (family.width if family else _width_word(owner, build, registry))
    sizes = {word: spec.cond_dim}
    if word not in parameters:
        raise SpecError(f"{owner}: expected a constructor that names {word!r}, got ({', '.join(parameters)}).")
    return construct(owner, build, bind(owner, build, sizes, options))


def named_film(name: str, registry: Registry | None = None) -> FiLMEntry | None:
    """The registered family of generators with this name; None if it is a ``"module:Class"`` instead.

    ``acme:Film`` may be either; a family of the distribution ``acme`` comes first.

    Raises:
        NameLookupError: No installed plugin offers it, and it is not a ``"module:Class"`` either.
        PluginError: The plugin that offers it is broken.
    """
    registry = registry or default_registry()
    if not REFERENCE_PATTERN.fullmatch(name):
        return registry.film_entry(name)
    try:
        return registry.film_entry(name)
    except (NameLookupError, PluginError):
        return None


def _paired_instance(
    spec: ReadoutSpec, film: nn.Module, width: str | None, registry: Registry | None, options: dict[str, Any]
) -> nn.Module:
    owner = f"FiLM generator {type(film).__name__}"
    if options:
        raise SpecError(f"{owner}: expected no options with an instance, got {', '.join(options)}.")
    check_film_width(film, spec.cond_dim, f"strategy {spec.entry.name!r}", width, registry)
    return film


def check_film_width(
    film: nn.Module, cond_dim: int, source: str, width: str | None = None, registry: Registry | None = None
) -> None:
    """Refuse a generator that takes another width than ``source`` gives.

    Raises:
        SpecError: The widths differ, or the generator's width is not found.
    """
    owner = f"FiLM generator {type(unwrapped(film)).__name__}"
    wanted = wanted_width(film, width, registry)
    if wanted is None:
        places = (width,) if width else _width_places(film, registry)
        raise SpecError(
            f"{owner}: expected an integer attribute {' or '.join(places)}, got none; use width= to name it."
        )
    if wanted != cond_dim:
        message = f"{owner}: expected conditioning of width {wanted}, got {cond_dim} from {source}."
        raise FilmWidthError(message, type(unwrapped(film)).__name__)


def wanted_width(film: nn.Module, width: str | None = None, registry: Registry | None = None) -> int | None:
    """The width of conditioning that a generator takes, at the attribute ``width`` or a known one; else None."""
    film = unwrapped(film)
    places = (width,) if width else _width_places(film, registry)
    return next((number for place in places if (number := _integer_at(film, place)) is not None), None)


def film_family(film: nn.Module | type, registry: Registry | None = None) -> FiLMEntry | None:
    """The known family of a generator, found by the names along its class's MRO, importing nothing."""
    cls = film if isinstance(film, type) else type(unwrapped(film))
    names = [reference_of(base) for base in cls.__mro__]
    known = (registry or default_registry()).film_entries()
    for name in names:  # the nearest base wins
        for entry in known:
            if _is_named(name, entry):
                return entry
    return None


def check_gives_pairs(film: Reference | nn.Module, registry: Registry | None = None) -> None:
    """Refuse a generator, built or not, of a family that applies FiLM itself and so returns no pairs.

    Raises:
        SpecError: It is of such a family.
        NameLookupError: No installed plugin offers a generator of this name.
    """
    family = named_film(film, registry) if isinstance(film, str) else None
    if family is None:
        found = film if isinstance(film, nn.Module) else load_reference("FiLM generator", film)
        family = film_family(found, registry) if isinstance(found, (nn.Module, type)) else None
    if family is not None and not family.gives_pairs:
        raise SpecError(f"FiLM generator {family.name!r}: {APPLIES_ITSELF}")


def convention_of(
    film: nn.Module, form: str | None = None, order: str | None = None, registry: Registry | None = None
) -> Convention:
    """What the generator's pairs mean: as the caller states, else as its family is known to mean.

    Nothing is guessed, because a swapped pair passes every shape check.

    Raises:
        SpecError: The module applies FiLM itself, so there are no pairs; its family is not known and the caller states
            nothing; or the caller contradicts its family.
    """
    film = unwrapped(film)
    owner = f"FiLM generator {type(film).__name__}"
    family = film_family(film, registry)
    if _applies_itself(film, family):
        raise SpecError(f"{owner}: {APPLIES_ITSELF}")
    form = form or (family.form if family else None)
    order = order or (family.order if family else None)
    if form is None or order is None:
        raise SpecError(
            f"{owner}: expected a known family or a stated form and order, got form={form!r}, order={order!r}; "
            "use form='gamma' or '1+gamma' and order='gamma-first' or 'shift-first'."
        )
    check_convention(owner, form, order)
    # a subclass of a family's class may mean something else
    if family is not None and _is_named(reference_of(type(film)), family):
        for word, known, stated in (("form", family.form, form), ("order", family.order, order)):
            if stated != known:
                raise SpecError(f"{owner}: {word}: expected {known!r}, which its family means, got {stated!r}.")
    return Convention(form, order)


def _is_named(name: str, entry: FiLMEntry) -> bool:
    return name == reference_of(entry.build) or name in entry.classes


def _applies_itself(film: nn.Module, family: FiLMEntry | None) -> bool:
    if family is not None and not family.gives_pairs:
        return True
    try:
        parameters = inspect.signature(film.forward).parameters.values()
    except (TypeError, ValueError):  # a scripted module shows no signature
        return False
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return len(required) > 1  # features and the conditioning vector


def _width_word(owner: str, build: Callable[..., Any], registry: Registry | None) -> str:
    family = film_family(build, registry) if isinstance(build, type) else None
    if family is not None and _is_named(reference_of(build), family):
        return family.width
    # a subclass may have another known argument, in addition to its family's
    known = dict.fromkeys(((family.width,) if family else ()) + WIDTH_WORDS)
    parameters = parameters_of(owner, build)
    words = [word for word in known if word in parameters]
    if len(words) > 1 and len(named := [word for word in words if word not in OF_ANY_CONTEXT]) == 1:
        words = named
    if len(words) != 1:
        raise SpecError(
            f"{owner}: expected one of {', '.join(known)} in its constructor, got {', '.join(words) or 'none'}; "
            "use width= to name it."
        )
    return words[0]


def _width_places(film: nn.Module, registry: Registry | None) -> tuple[str, ...]:
    family = film_family(film, registry)
    # first where the layer has it: an attribute can be wrong
    known = () if family is None else (family.width_at, family.width)
    return tuple(dict.fromkeys(place for place in known + WIDTH_WORDS if place))


def _integer_at(film: nn.Module, place: str) -> int | None:
    value: Any = film
    for name in place.split("."):
        value = getattr(value, name, None)
    return value if is_int(value) else None


def _name(build: Callable[..., Any]) -> str:
    return getattr(build, "__name__", repr(build))
