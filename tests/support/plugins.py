"""Plugins in memory."""

from typing import Any, TypeVar

import regplug
from regplug.registry.discovery import Found, discover
from regplug.registry.hookspecs import hookimpl

BUILT_IN = Found("regplug", None, modules=["regplug.registry.builtin"])
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


def registry_with(*entries: Any, distribution: str = "acme") -> regplug.Registry:
    """A registry of these entries alone."""
    registry = regplug.Registry({})
    registry.register(Plugin(*entries), distribution)
    return registry


def installed_with(*entries: Any, distribution: str = "acme") -> regplug.Registry:
    """A registry of what is installed, and these entries."""
    registry = regplug.Registry(discover())
    registry.register(Plugin(*entries), distribution)
    return registry
