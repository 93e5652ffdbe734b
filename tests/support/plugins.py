"""Plugins in memory."""

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import regplug
from regplug.registry.discovery import Found
from regplug.registry.hookspecs import hookimpl

BUILTIN = Found("regplug", None, modules=["regplug.registry.builtin"])
E = TypeVar("E")


class Plugin:
    """Offers the entries that it is made with, of any kind."""

    def __init__(self, *entries: Any) -> None:
        self.entries = entries

    def _of(self, kind: type[E]) -> list[E]:
        return [entry for entry in self.entries if isinstance(entry, kind)]

    @hookimpl
    def regplug_readouts(self) -> list[regplug.ReadoutEntry]:
        return self._of(regplug.ReadoutEntry)

    @hookimpl
    def regplug_films(self) -> list[regplug.FiLMEntry]:
        return self._of(regplug.FiLMEntry)

    @hookimpl
    def regplug_backbones(self) -> list[regplug.BackboneEntry]:
        return self._of(regplug.BackboneEntry)

    @hookimpl
    def regplug_export_backends(self) -> list[regplug.ExportBackendEntry]:
        return self._of(regplug.ExportBackendEntry)


def registry_of(*entries: Any, distribution: str = "acme") -> regplug.Registry:
    """A registry of these entries alone."""
    registry = regplug.Registry({})
    registry.register(Plugin(*entries), distribution)
    return registry


def builtin_with(**offered: Any) -> regplug.Registry:
    """A registry of what is built in, and of one entry for each distribution that is named."""
    registry = regplug.Registry({"regplug": BUILTIN})
    for distribution, entry in offered.items():
        registry.register(Plugin(entry), distribution)
    return registry


def installed_with(*entries: Any, distribution: str = "acme") -> regplug.Registry:
    """A registry of what is installed, and of these entries."""
    registry = regplug.Registry.installed()
    registry.register(Plugin(*entries), distribution, "1.0")
    return registry


@contextlib.contextmanager
def registered(*entries: Any, distribution: str = "acme") -> Iterator[None]:
    """Register these entries in the process's own registry, for the length of a block."""
    registry = regplug.default_registry()
    registry.register(Plugin(*entries), distribution)
    try:
        yield
    finally:
        registry.unregister(distribution)
