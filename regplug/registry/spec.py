"""What a user chose: a strategy, its sizes and options, and the width that follows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from regplug.errors import SpecError
from regplug.registry.cond_dim import calculate, check_stated, check_width, construct, measure, probe_in_place
from regplug.registry.deprecation import current_options
from regplug.registry.entries import ReadoutEntry
from regplug.registry.integers import MAX_INTEGER, check_positive_int
from regplug.registry.options import bind, check_any_count, stored_options
from regplug.registry.readout_inputs import takes_mask
from regplug.registry.references import Reference, load_reference
from regplug.registry.stored_values import freeze, plain
from regplug.registry.width_formula import WidthFormula, explain

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ReadoutSpec:
    """A strategy, its sizes and options, checked; ``regplug.resolve`` makes it.

    It holds its entry, so that ``build`` needs no registry. It pickles, compares and prints as data.

    Args:
        entry: The strategy, with the distribution that offers it.
        num_registers: R; None for any number of tokens.
        hidden_dim: D.
        options: The strategy's own options, as JSON values; a read-only copy.
        cond_dim: Width of the conditioning vector that follows from them.
        measured: Whether a forward on the meta device confirmed ``cond_dim``; if not, ``build`` does that.
    """

    entry: ReadoutEntry
    num_registers: int | None
    hidden_dim: int
    options: Mapping[str, Any] = field(hash=False)
    cond_dim: int
    measured: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", freeze(self.options))

    def __reduce__(self) -> tuple[Any, ...]:
        # a mapping proxy cannot be pickled
        return (
            ReadoutSpec,
            (self.entry, self.num_registers, self.hidden_dim, plain(self.options), self.cond_dim, self.measured),
        )

    @property
    def strategy(self) -> str:
        """The strategy's full name, ``distribution:name``."""
        return self.entry.full_name

    @property
    def arguments(self) -> dict[str, Any]:
        """What the readout's constructor is called with."""
        sizes = {"num_registers": self.num_registers, "hidden_dim": self.hidden_dim}
        return bind(_owner(self.entry), self.readout_class, sizes, self.options, self.entry.sizes)

    @property
    def readout_class(self) -> Any:
        """The readout's class; imports its module."""
        return load_reference(_owner(self.entry), self.entry.build)

    @property
    def takes_mask(self) -> bool:
        """Whether its ``forward(registers, mask)`` takes a mask of the tokens that count; imports its module."""
        build = self.readout_class
        if isinstance(build, type):
            return takes_mask(build)
        import torch

        with torch.device("meta"):  # a function says nothing of what it builds
            return takes_mask(construct(_owner(self.entry), build, self.arguments))

    @property
    def formula(self) -> str:
        """``cond_dim`` for all sizes, such as ``"96*R"`` or ``"R*D/4"``, with these options; else ``"unknown"``.

        Fitted to readouts built on the meta device at several R and D, and checked at others.
        """
        return self._explained.formula

    @property
    def conditions(self) -> tuple[str, ...]:
        """What R and D must satisfy with these options, such as ``"4 divides D"``, found by trying sizes.

        Found for one size while the other one stays as it is here.
        """
        return self._explained.conditions

    @cached_property
    def _explained(self) -> WidthFormula:
        if self.num_registers is None:  # a formula without R
            width_at = cache(lambda hidden_dim: self._width_at(None, hidden_dim))
            return explain(lambda _, hidden_dim: width_at(hidden_dim), 1, self.hidden_dim)
        return explain(self._width_at, self.num_registers, self.hidden_dim)

    def _width_at(self, num_registers: int | None, hidden_dim: int) -> int | None:
        try:
            with warnings.catch_warnings():  # the user did not choose this size
                warnings.simplefilter("ignore")
                other = specify(self.entry, num_registers, hidden_dim, self.options)
        except SpecError:
            return None
        return other.cond_dim if other.measured or not self.measured else None

    def build(self) -> nn.Module:
        """Make the readout: the plugin's own class, without a wrapper, on the default device and dtype.

        Raises:
            SpecError: The constructor raises, or (if there is no meta forward) ``cond_dim`` is not what a real forward
                gives.
            PluginError: The readout's module cannot be imported.
        """
        owner = _owner(self.entry)
        module = construct(owner, self.readout_class, self.arguments)
        if not self.measured:
            if self.num_registers is None:
                check_any_count(owner, self.readout_class, self.entry.sizes)
            width = probe_in_place(owner, module, self.num_registers, self.hidden_dim)
            check_width(owner, self.cond_dim, width)
        return module

    def as_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values, the strategy as ``distribution:name``."""
        return {
            "strategy": self.strategy,
            "num_registers": self.num_registers,
            "hidden_dim": self.hidden_dim,
            "options": plain(self.options),
            "cond_dim": self.cond_dim,
        }


def specify(entry: ReadoutEntry, num_registers: int | None, hidden_dim: int, options: Mapping[str, Any]) -> ReadoutSpec:
    """Check sizes and options against the readout's constructor and find ``cond_dim``, allocating nothing.

    Raises:
        SpecError: A size or an option does not fit.
        PluginError: The readout's module cannot be imported.
    """
    owner = _owner(entry)
    options, arguments = _bound(entry, entry.build, num_registers, hidden_dim, options)
    cond_dim, measured = measure(owner, load_reference(owner, entry.build), arguments, num_registers, hidden_dim)
    if cond_dim < 1:
        raise SpecError(f"{owner}: expected a cond_dim of at least 1, got {cond_dim} from its forward.")
    _check_storable(owner, "cond_dim", cond_dim)
    if entry.cond_dim is not None:
        check_stated(owner, calculate(owner, load_reference(owner, entry.cond_dim), arguments), cond_dim)
    return ReadoutSpec(entry, num_registers, hidden_dim, options, cond_dim, measured)


def specify_unmeasured(
    entry: ReadoutEntry, num_registers: int | None, hidden_dim: int, options: Mapping[str, Any]
) -> ReadoutSpec:
    """As ``specify``, without torch if the entry has a ``cond_dim``; ``build`` then measures.

    Raises:
        SpecError: A size or an option does not fit.
        PluginError: The module of the readout or of its ``cond_dim`` cannot be imported.
    """
    if entry.cond_dim is None:
        return specify(entry, num_registers, hidden_dim, options)
    owner = _owner(entry)
    options, arguments = _bound(entry, entry.cond_dim, num_registers, hidden_dim, options)
    cond_dim = calculate(owner, load_reference(owner, entry.cond_dim), arguments)
    _check_storable(owner, "cond_dim", cond_dim)
    return ReadoutSpec(entry, num_registers, hidden_dim, options, cond_dim, measured=False)


def _bound(
    entry: ReadoutEntry, target: Reference, num_registers: int | None, hidden_dim: int, options: Mapping[str, Any]
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The options under their current names, as JSON stores them, and what ``target`` is called with."""
    owner = _owner(entry)
    sizes = {"num_registers": num_registers, "hidden_dim": hidden_dim}
    for word, size in sizes.items():
        if size is not None or word == "hidden_dim":
            _check_storable(owner, word, check_positive_int(f"{owner}: {word}", size))
    build = load_reference(owner, target)
    if num_registers is None:
        check_any_count(owner, build, entry.sizes)
    options = stored_options(owner, build, sizes, current_options(owner, options, entry.old_options), entry.sizes)
    return options, bind(owner, build, sizes, options, entry.sizes)


def _owner(entry: ReadoutEntry) -> str:
    return f"strategy {entry.name!r}"


def _check_storable(owner: str, word: str, size: int) -> None:
    if size > MAX_INTEGER:
        raise SpecError(f"{owner}: {word}: expected less than 2^53, got {size}.")
