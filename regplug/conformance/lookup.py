"""Finds the readout that a user names: an installed strategy, or a class that no plugin offers."""

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

NUM_REGISTERS, HIDDEN_DIM = 4, 24  # the defaults: small, so fast
MAX_REASON = 120  # characters of why a name is no strategy


class NamedReadout(NamedTuple):
    """A strategy's full name, and the registry that knows it."""

    registry: Registry
    strategy: str


class OneClassPlugin:
    """A plugin that offers one class.

    Args:
        entry: The class's entry.
    """

    def __init__(self, entry: ReadoutEntry) -> None:
        self._entry = entry

    @hookimpl
    def regplug_readouts(self) -> list[ReadoutEntry]:
        """The class, as a strategy."""
        return [self._entry]


def readout_named(name: str, sizes: Mapping[str, Any] | None = None) -> NamedReadout:
    """The readout that ``NAME``, ``distribution:NAME`` or ``module:Class`` means.

    Args:
        name: The user's name for it; looked up as an installed strategy, then as a class, installed or in the working
            directory.
        sizes: A class's own names for the two sizes, each with the registry's name.

    Raises:
        NameLookupError: It is neither.
        PluginError: The plugin that offers it is broken.
        SpecError: ``sizes`` is given with an installed strategy, or maps to unknown names.
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
    return NamedReadout(registry, entry.full_name)


def _is_blocked(registry: Registry, name: str) -> bool:
    owner = normalise(name.partition(":")[0])
    return any(record.distribution == owner and record.status == "blocked" for record in registry.plugins())


def _class_named(name: str, sizes: Mapping[str, Any], not_a_strategy: NameLookupError) -> NamedReadout:
    try:
        import_named_by_user(f"readout {name!r}", name)
    except SpecError as error:
        raise NameLookupError(
            f"readout {name!r}: expected an installed strategy or module:Class, got neither: as a strategy, "
            f"{clip(str(not_a_strategy), MAX_REASON)} As a class, {error}"
        ) from error
    module, _, attribute = name.partition(":")
    registry = Registry.installed()  # not the default one: the class is registered for these checks only
    known = {record.distribution for record in registry.plugins()}
    owner = _as_name(module)
    if owner in known:
        owner += "-class"
    entry = ReadoutEntry(_as_name(_kebab(attribute.rpartition(".")[2])), build=name, sizes=sizes)
    registry.register(OneClassPlugin(entry), owner)
    return NamedReadout(registry, f"{owner}:{entry.name}")


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name)


def _as_name(name: str) -> str:
    # a Python name may have letters, and leading underscores, that a strategy's name must not have
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "readout"
