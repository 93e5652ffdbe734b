"""Which readout a user's word means: an installed strategy, or a class that no plugin offers yet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from regplug.errors import NameLookupError, SpecError, clip
from regplug.registry.default import default_registry
from regplug.registry.distributions import normalise
from regplug.registry.entries import ReadoutEntry
from regplug.registry.hookspecs import hookimpl
from regplug.registry.references import REFERENCE_PATTERN, import_named_by_user
from regplug.registry.registry import Registry

NUM_REGISTERS, HIDDEN_DIM = 4, 24  # where nobody says: small is fast, and no size is special
SHOWN = 120  # characters of why a word is no strategy


class Named(NamedTuple):
    """A strategy's full name, and the registry that knows it."""

    registry: Registry
    strategy: str


class OneClass:
    """The plugin around a class that no plugin offers.

    Args:
        entry: What it offers.
    """

    def __init__(self, entry: ReadoutEntry) -> None:
        self._entry = entry

    @hookimpl
    def regplug_readouts(self) -> list[ReadoutEntry]:
        """The class, as a strategy."""
        return [self._entry]


def readout_named(name: str, sizes: Mapping[str, Any] | None = None) -> Named:
    """The readout that ``NAME``, ``distribution:NAME`` or ``module:Class`` means.

    Args:
        name: The user's word; an installed strategy comes first, then a class, in the working directory or installed.
        sizes: A class's own words for the two sizes, each with the registry's.

    Raises:
        NameLookupError: It is neither.
        PluginError: The plugin that offers it is broken.
        SpecError: ``sizes`` is given beside an installed strategy, or has other words than the registry's.
    """
    registry = default_registry()
    try:
        entry = registry.readout_entry(name)
    except NameLookupError as error:
        if not REFERENCE_PATTERN.fullmatch(name) or _is_blocked(registry, name):
            raise
        return _class_named(name, sizes or {}, error)
    if sizes:
        raise SpecError(f"readout {name!r}: sizes: expected them with module:Class, got an installed strategy.")
    return Named(registry, entry.full_name)


def _is_blocked(registry: Registry, name: str) -> bool:
    owner = normalise(name.partition(":")[0])
    return any(record.distribution == owner and record.status == "blocked" for record in registry.plugins())


def _class_named(name: str, sizes: Mapping[str, Any], no_strategy: NameLookupError) -> Named:
    try:
        import_named_by_user(f"readout {name!r}", name)
    except SpecError as error:
        raise NameLookupError(
            f"readout {name!r}: expected an installed strategy or module:Class, got neither: as a strategy, "
            f"{clip(str(no_strategy), SHOWN)} As a class, {error}"
        ) from error
    module, _, attribute = name.partition(":")
    registry = Registry.installed()  # of its own: what is checked here is nobody else's
    known = {record.distribution for record in registry.plugins()}
    owner = _plain(module)
    if owner in known:
        owner += "-class"
    entry = ReadoutEntry(_plain(_kebab(attribute.rpartition(".")[2])), build=name, sizes=sizes)
    registry.register(OneClass(entry), owner)
    return Named(registry, f"{owner}:{entry.name}")


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name)


def _plain(name: str) -> str:
    # a Python name may have letters, and underscores in front, that a strategy's must not
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "readout"
