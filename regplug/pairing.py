"""Pairs a readout with a FiLM generator: passes the width on, and knows what the generator's pairs mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from regplug.entries import FiLMEntry, Reference, check_convention, check_reference, load_reference, reference_of
from regplug.errors import SpecError
from regplug.installed import default_registry
from regplug.options import bind, parameters_of
from regplug.registry import Registry
from regplug.spec import ReadoutSpec
from regplug.widths import construct

# what public FiLM families call the width of the conditioning vector, tried in this order
WIDTH_WORDS = ("cond_dim", "global_cond_dim", "conditioning_embedding_dim", "conditioning_dim", "cond_channels")


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
    """A FiLM generator that takes what the readout gives.

    Args:
        spec: The readout's choice; its ``cond_dim`` is passed on.
        film: A class, or ``"module:Class"``, that is then built; or an instance, that is then checked.
        width: The constructor's (or the instance's) own word for ``cond_dim``; found among the known families
            and words when None.
        registry: Where families are looked up; the installed plugins when None.
        **options: The other arguments of the constructor.

    Returns:
        The generator itself, no wrapper.

    Raises:
        SpecError: The word for the width is not known, an option does not fit, or the instance wants another
            width.

    Example:
        >>> from regplug.film import KernelFiLMGenerator
        >>> from regplug.installed import resolve
        >>> spec = resolve("mean", num_registers=4, hidden_dim=48)
        >>> pair(spec, KernelFiLMGenerator, kernel_hidden_dim=32, num_film_layers=3).cond_dim
        48
    """
    if isinstance(film, nn.Module):
        return _paired_instance(spec, film, width, registry, options)
    check_reference("FiLM generator", "film", film)
    build = load_reference("FiLM generator", film)
    owner = f"FiLM generator {_name(build)}"
    parameters = parameters_of(owner, build)
    word = width or _width_word(owner, build, registry)
    sizes = {word: spec.cond_dim}
    if word not in parameters:
        raise SpecError(f"{owner}: expected a constructor that names {word!r}, got ({', '.join(parameters)}).")
    return construct(owner, build, bind(owner, build, sizes, options))


def _paired_instance(
    spec: ReadoutSpec, film: nn.Module, width: str | None, registry: Registry | None, options: dict[str, Any]
) -> nn.Module:
    owner = f"FiLM generator {type(film).__name__}"
    if options:
        raise SpecError(f"{owner}: expected no options with an instance, got {', '.join(options)}.")
    check_film_width(film, spec.cond_dim, f"strategy {spec.entry.name!r}", width, registry)
    return film


def check_film_width(
    film: nn.Module, cond_dim: int, giver: str, width: str | None = None, registry: Registry | None = None
) -> None:
    """Refuse a generator that wants another width than ``giver`` gives.

    Raises:
        SpecError: The widths differ, or the generator does not say what it wants.
    """
    owner = f"FiLM generator {type(film).__name__}"
    wanted = _wanted_width(film, width, registry)
    if wanted is None:
        raise SpecError(
            f"{owner}: expected an integer attribute {' or '.join(WIDTH_WORDS)}, got none; use width= to name it."
        )
    if wanted != cond_dim:
        raise SpecError(f"{owner}: expected conditioning of width {wanted}, got {cond_dim} from {giver}.")


def film_family(film: nn.Module | type, registry: Registry | None = None) -> FiLMEntry | None:
    """The known family of a generator, found by the names along its class's MRO, importing nothing."""
    cls = film if isinstance(film, type) else type(film)
    names = [reference_of(base) for base in cls.__mro__]
    known = (registry or default_registry()).film_entries()
    for name in names:  # the nearest base wins
        for entry in known:
            if _is_named(name, entry):
                return entry
    return None


def convention_of(
    film: nn.Module, form: str | None = None, order: str | None = None, registry: Registry | None = None
) -> Convention:
    """What the generator's pairs mean: as stated, else as its family is known to mean.

    Raises:
        SpecError: The family is not known and the caller states nothing, or states what its family does not mean;
            a swapped pair passes every shape check, so nothing is guessed.
    """
    owner = f"FiLM generator {type(film).__name__}"
    family = film_family(film, registry)
    form = form or (family.form if family else None)
    order = order or (family.order if family else None)
    if form is None or order is None:
        raise SpecError(
            f"{owner}: expected a known family or a stated form and order, got form={form!r}, order={order!r}; "
            "use form='gamma' or '1+gamma' and order='gamma-first' or 'shift-first'."
        )
    check_convention(owner, form, order)
    # a class derived from a family's may mean something else
    if family is not None and _is_named(reference_of(type(film)), family):
        for word, known, stated in (("form", family.form, form), ("order", family.order, order)):
            if stated != known:
                raise SpecError(f"{owner}: {word}: expected {known!r}, which its family means, got {stated!r}.")
    return Convention(form, order)


def _is_named(name: str, entry: FiLMEntry) -> bool:
    return name == reference_of(entry.build) or name in entry.classes


def _width_word(owner: str, build: Callable[..., Any], registry: Registry | None) -> str:
    family = film_family(build, registry) if isinstance(build, type) else None
    if family is not None:
        return family.width
    parameters = parameters_of(owner, build)
    words = [word for word in WIDTH_WORDS if word in parameters]
    if len(words) != 1:
        raise SpecError(
            f"{owner}: expected one of {', '.join(WIDTH_WORDS)} in its constructor, got {', '.join(words) or 'none'}; "
            "use width= to name it."
        )
    return words[0]


def _wanted_width(film: nn.Module, width: str | None, registry: Registry | None) -> int | None:
    family = film_family(film, registry)
    for word in (width,) if width else ((family.width,) if family else ()) + WIDTH_WORDS:
        value = getattr(film, word, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    if width is None and family is not None:
        # nvSubquadratic's generator keeps no cond_dim: its first layer does
        first = next((child for child in film.modules() if isinstance(child, nn.Linear)), None)
        return None if first is None else first.in_features
    return None


def _name(build: Callable[..., Any]) -> str:
    return getattr(build, "__name__", repr(build))
