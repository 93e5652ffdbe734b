"""The hooks that a plugin may implement. Each returns entries; none imports what it names."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from regplug.registry.entries import BackboneEntry, ExportBackendEntry, FiLMEntry, ReadoutEntry

hookspec = pluggy.HookspecMarker("regplug")
hookimpl = pluggy.HookimplMarker("regplug")


@hookspec
def regplug_readouts() -> Iterable[ReadoutEntry]:
    """The readout strategies that this plugin offers."""
    return ()


@hookspec
def regplug_films() -> Iterable[FiLMEntry]:
    """The families of FiLM generators that this plugin offers, or recognises."""
    return ()


@hookspec
def regplug_backbones() -> Iterable[BackboneEntry]:
    """The backbones that this plugin offers."""
    return ()


@hookspec
def regplug_export_backends() -> Iterable[ExportBackendEntry]:
    """The export backends that this plugin offers."""
    return ()


# the entries that each hook gives
HOOKS = {
    "regplug_readouts": ReadoutEntry,
    "regplug_films": FiLMEntry,
    "regplug_backbones": BackboneEntry,
    "regplug_export_backends": ExportBackendEntry,
}
