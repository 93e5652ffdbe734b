"""What a plugin offers: data that names classes as ``"module:attr"`` and imports none of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from regplug.errors import SpecError
from regplug.registry.references import Reference, check_reference
from regplug.registry.untrusted_values import are_texts, exact, mapping_of, repr_of, texts_of

if TYPE_CHECKING:
    from regplug.registry.layout import TokenLayout

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SIZES = ("num_registers", "hidden_dim")
MAX_LINE = 400  # characters of a summary, an equation, a source
FILM_FORMS = ("gamma", "1+gamma")
FILM_ORDERS = ("gamma-first", "shift-first")


@dataclass(frozen=True)
class Provenance:
    """Which installed distribution brought an entry, and in which version."""

    distribution: str
    version: str

    def __post_init__(self) -> None:
        for word in ("distribution", "version"):
            object.__setattr__(self, word, exact(getattr(self, word)))


@dataclass(frozen=True)
class Entry:
    """What every entry has; plugins offer one of the subclasses.

    Args:
        name: The name that users type.
        build: The class or function that makes the object, as ``"module:attr"``.
        summary: One line for people.
        provenance: Filled in by the registry.
        old_names: Former names. They still find it, in bundles too, with one warning that says the new name; they are
            not listed, and a current name is always preferred.

    Raises:
        SpecError: A field has a value that cannot be used.
    """

    name: str
    build: Reference
    summary: str = field(default="", kw_only=True)
    provenance: Provenance | None = field(default=None, kw_only=True)
    old_names: Sequence[str] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        for word in ("name", "build", "summary"):
            self._make_exact(word)
        if not (isinstance(self.name, str) and NAME_PATTERN.fullmatch(self.name)):
            raise SpecError(
                f"{type(self).__name__}: name: expected letters, digits, '.', '_' and '-', got {repr_of(self.name)}."
            )
        check_reference(self.label, "build", self.build)
        is_line = isinstance(self.summary, str) and len(self.summary.splitlines()) <= 1
        if not is_line or len(self.summary) > MAX_LINE:
            wanted = f"one line of at most {MAX_LINE} characters"
            raise SpecError(f"{self.label}: summary: expected {wanted}, got {repr_of(self.summary)}.")
        if self.old_names != ():
            self._check_old_names()

    def _make_exact(self, word: str) -> None:
        """Make a text exactly ``str``: a plugin's subclass could define what it equals."""
        value = getattr(self, word)
        if type(value) is not str and isinstance(value, str):
            object.__setattr__(self, word, exact(value))

    def _check_old_names(self) -> None:
        names = texts_of(f"{self.label}: old_names", self.old_names)
        if not all(map(self._is_another_name, names)):
            raise SpecError(f"{self.label}: old_names: expected a list of other names, got {repr_of(list(names))}.")
        object.__setattr__(self, "old_names", names)

    def _is_another_name(self, name: str) -> bool:
        return NAME_PATTERN.fullmatch(name) is not None and name != self.name

    @property
    def label(self) -> str:
        """The entry as messages call it."""
        return f"{type(self).__name__} {self.name!r}"

    @property
    def full_name(self) -> str:
        """``distribution:name``, which is never ambiguous."""
        return f"{self.provenance.distribution}:{self.name}" if self.provenance else self.name


@dataclass(frozen=True)
class ReadoutEntry(Entry):
    """A readout strategy: an ``nn.Module`` class, ``[B, R, D] -> [B, cond_dim]``.

    Args:
        sizes: The constructor's words for the two sizes, if others: ``{"in_features": "hidden_dim"}``.
        old_options: Options that were renamed, ``{"dim": "compressed_dim"}``: the old name still works, in bundles
            too, with one warning that says the new one.
        cond_dim: A callable that gives ``cond_dim`` without torch. It takes the constructor's arguments, by keyword,
            and raises where the constructor raises. ``regplug cond-dim`` calls it and then imports no torch.
            Building the readout still measures the width, and an entry that states another one is refused.
        equation: What the readout computes, on one line: ``"c = (1 / R) sum_r x_r"``. ``regplug info`` shows it.
        source: The paper or code that it is from, on one line.
    """

    sizes: Mapping[str, str] = field(default_factory=dict, hash=False)
    old_options: Mapping[str, str] = field(default_factory=dict, hash=False, kw_only=True)
    cond_dim: Reference | None = field(default=None, kw_only=True)
    equation: str | None = field(default=None, kw_only=True)
    source: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for word in ("cond_dim", "equation", "source"):
            self._make_exact(word)
        for word in ("equation", "source"):
            text = getattr(self, word)
            if text is not None and not (isinstance(text, str) and text.isprintable() and len(text) <= MAX_LINE):
                wanted = f"one printable line of at most {MAX_LINE} characters"
                raise SpecError(f"{self.label}: {word}: expected {wanted}, got {repr_of(text)}.")
        if self.cond_dim is not None:
            check_reference(self.label, "cond_dim", self.cond_dim)
        wanted = f"{self.label}: sizes: expected constructor words that mean 'num_registers' or 'hidden_dim'"
        sizes = mapping_of(wanted, self.sizes)
        if not are_texts(sizes.values()) or set(sizes.values()) - set(SIZES):
            raise SpecError(f"{wanted}, got {repr_of(sizes)}.")
        wanted = f"{self.label}: old_options: expected old words, each with its new one"
        old = mapping_of(wanted, self.old_options)
        if not are_texts(old.values()) or {*old, *old.values()} & set(SIZES) or old.keys() & set(old.values()):
            raise SpecError(f"{wanted}, got {repr_of(old)}.")
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "old_options", old)


@dataclass(frozen=True)
class FiLMEntry(Entry):
    """A family of FiLM modules: what it calls its width, and what its pairs mean.

    Args:
        width: The constructor's word for ``cond_dim``.
        form: ``"gamma"`` (``gamma * h + beta``) or ``"1+gamma"`` (``(1 + gamma) * h + beta``).
        order: ``"gamma-first"`` or ``"shift-first"``: which of a pair comes first.
        classes: Other classes of the same family, recognised by the names in a class's MRO.
        width_at: Where an instance has its width, as dotted attributes (``"mlp.0.in_features"``); None for the
            attribute named ``width``.
        gives_pairs: False for a module that applies FiLM to features itself: ``pair`` builds it, but a ``Conditioner``
            cannot use it; form and order are then those inside it.
    """

    width: str = "cond_dim"
    form: str = "gamma"
    order: str = "gamma-first"
    classes: Sequence[str] = ()
    width_at: str | None = None
    gives_pairs: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for word in ("width", "form", "order", "width_at"):
            self._make_exact(word)
        check_convention(self.label, self.form, self.order)
        object.__setattr__(self, "classes", texts_of(f"{self.label}: classes", self.classes))
        for word in ("width", "width_at"):
            value = getattr(self, word)
            if not (isinstance(value, str) or (value is None and word == "width_at")):
                raise SpecError(f"{self.label}: {word}: expected text, got {repr_of(value)}.")


@dataclass(frozen=True)
class FiLMSite:
    """A place in a backbone that takes FiLM pairs.

    Args:
        where: Dotted path of the module inside the backbone.
        features: Width of gamma and of beta there.
        num_layers: How many pairs it takes.
    """

    where: str
    features: int
    num_layers: int


@dataclass(frozen=True)
class BackboneEntry(Entry):
    """A backbone, or a family of them, and the strategies that suit it.

    ``build`` makes the model, with random weights and on the device that ``torch.device`` says (the meta device too).
    It is called with the model's name, if one is given (``NAME:MODEL``), and with options by keyword. Both may come
    from an untrusted bundle (the name is then neither a path nor an address). So it must not read files or download
    anything for them, and must limit what it loops over before the first module is made, such as a depth. The rest is
    limited here.

    Args:
        layout: Callable ``model -> TokenLayout``; the model may be on the meta device. Its ``normalized`` says
            whether the model itself gives normalized registers. A model without registers is a ``SpecError``.
        film_sites: Callable ``model -> sequence of FiLMSite``; None for a backbone without FiLM.
        readouts: Strategies it offers, best known first.
        default: One of them.
        options: The default strategy's options on this backbone.
        classes: Names (``"module:Class"``) by which a model is recognised, in its class's MRO.
        tokens: Callable ``(model, normalized) -> nn.Module``, a module from the model's inputs to tokens ``[B, T, D]``,
            the final norm applied or not as the bool says; it shares the model's weights and leaves the model as it
            is. None if the registers cannot be read from outside.
        describe: Callable ``model -> (name, options)``: the arguments with which ``build`` makes the same model, as
            JSON values. None for a backbone that a bundle cannot hold.
        weights: Callable ``shapes -> sequence of CheckpointSite``, which finds readouts in a checkpoint by names and
            shapes; None if checkpoints hold no readouts.
        preprocess: Callable ``model -> ImagePreprocess``, how an image file becomes the model's input, as published
            with its weights; the model may be on the meta device. None, or a callable that gives None, if nothing is
            known.
    """

    layout: Reference
    film_sites: Reference | None = None
    readouts: Sequence[str] = ()
    default: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    classes: Sequence[str] = ()
    tokens: Reference | None = None
    describe: Reference | None = None
    weights: Reference | None = None
    preprocess: Reference | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for word in ("layout", "film_sites", "tokens", "describe", "weights", "preprocess", "default"):
            self._make_exact(word)
        check_reference(self.label, "layout", self.layout)
        for word in ("film_sites", "tokens", "describe", "weights", "preprocess"):
            reference = getattr(self, word)
            if reference is not None:
                check_reference(self.label, word, reference)
        for word in ("readouts", "classes"):
            object.__setattr__(self, word, texts_of(f"{self.label}: {word}", getattr(self, word)))
        object.__setattr__(
            self, "options", mapping_of(f"{self.label}: options: expected names with values", self.options)
        )
        if self.default is not None and not (type(self.default) is str and self.default in self.readouts):
            raise SpecError(
                f"{self.label}: default: expected one of {', '.join(self.readouts)}, got {repr_of(self.default)}."
            )


@dataclass(frozen=True)
class CheckpointSite:
    """A readout in the checkpoint of a whole network, found by names and shapes.

    Args:
        where: The block, ``"3"``; empty if the network has only one readout.
        strategy: The registered name of the strategy that has these weights.
        num_registers: R.
        hidden_dim: D.
        options: The strategy's options, found from the shapes.
        readout: The readout's state-dict names, each with its name in the checkpoint.
        layout: Where the registers are; None if the checkpoint does not show it.
        film: The registered name of the FiLM generator after the readout; None if there is none.
        film_options: What it was built with, except its width.
        film_weights: Its state-dict names, each with its name in the checkpoint.
    """

    where: str
    strategy: str
    num_registers: int
    hidden_dim: int
    options: Mapping[str, Any]
    readout: Mapping[str, str]
    layout: TokenLayout | None = None
    film: str | None = None
    film_options: Mapping[str, Any] = field(default_factory=dict)
    film_weights: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportBackendEntry(Entry):
    """An export backend: a subclass of ``regplug.backends.ExportBackend``, which makes programs."""


def check_convention(owner: str, form: object, order: object) -> None:
    """Raise a SpecError for an unknown FiLM form or order."""
    for word, value, known in (("form", form, FILM_FORMS), ("order", order, FILM_ORDERS)):
        if not (isinstance(value, str) and exact(value) in known):
            raise SpecError(f"{owner}: {word}: expected one of {', '.join(known)}, got {repr_of(value)}.")
