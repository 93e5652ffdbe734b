"""regplug: pick a register readout by name, get the matching FiLM width, ship it to Python and C++.

Importing this package imports neither torch nor a plugin: every name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regplug.attachment import attach as attach
    from regplug.backbone import layout_of as layout_of
    from regplug.backbone import measure_backbone as measure_backbone
    from regplug.bundle import export as export
    from regplug.conditioner import Conditioner as Conditioner
    from regplug.decay import param_groups as param_groups
    from regplug.description import StrategyDescription as StrategyDescription
    from regplug.description import describe as describe
    from regplug.entries import BackboneEntry as BackboneEntry
    from regplug.entries import CheckpointSite as CheckpointSite
    from regplug.entries import ExportBackendEntry as ExportBackendEntry
    from regplug.entries import FiLMEntry as FiLMEntry
    from regplug.entries import FiLMSite as FiLMSite
    from regplug.entries import ReadoutEntry as ReadoutEntry
    from regplug.errors import BundleError as BundleError
    from regplug.errors import ConformanceError as ConformanceError
    from regplug.errors import ExportError as ExportError
    from regplug.errors import NameLookupError as NameLookupError
    from regplug.errors import PluginError as PluginError
    from regplug.errors import RegplugError as RegplugError
    from regplug.errors import ShapeError as ShapeError
    from regplug.errors import SpecError as SpecError
    from regplug.film import KernelFiLMGenerator as KernelFiLMGenerator
    from regplug.hookspecs import hookimpl as hookimpl
    from regplug.installed import backbones as backbones
    from regplug.installed import create as create
    from regplug.installed import default_registry as default_registry
    from regplug.installed import resolve as resolve
    from regplug.installed import strategies as strategies
    from regplug.layout import TokenLayout as TokenLayout
    from regplug.loading import load as load
    from regplug.pairing import pair as pair
    from regplug.registry import Registry as Registry
    from regplug.selection import SelectRegisters as SelectRegisters
    from regplug.signing import sign as sign
    from regplug.spec import ReadoutSpec as ReadoutSpec
    from regplug.tokens import read_registers as read_registers
    from regplug.verification import verify as verify

_HOMES = {
    "BackboneEntry": "entries",
    "BundleError": "errors",
    "CheckpointSite": "entries",
    "Conditioner": "conditioner",
    "ConformanceError": "errors",
    "ExportBackendEntry": "entries",
    "ExportError": "errors",
    "FiLMEntry": "entries",
    "FiLMSite": "entries",
    "KernelFiLMGenerator": "film",
    "NameLookupError": "errors",
    "PluginError": "errors",
    "ReadoutEntry": "entries",
    "ReadoutSpec": "spec",
    "Registry": "registry",
    "RegplugError": "errors",
    "SelectRegisters": "selection",
    "ShapeError": "errors",
    "SpecError": "errors",
    "StrategyDescription": "description",
    "TokenLayout": "layout",
    "attach": "attachment",
    "backbones": "installed",
    "create": "installed",
    "default_registry": "installed",
    "describe": "description",
    "export": "bundle",
    "hookimpl": "hookspecs",
    "layout_of": "backbone",
    "load": "loading",
    "measure_backbone": "backbone",
    "pair": "pairing",
    "param_groups": "decay",
    "read_registers": "tokens",
    "resolve": "installed",
    "sign": "signing",
    "strategies": "installed",
    "verify": "verification",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from regplug.version import own_version

        return own_version()
    if name not in _HOMES:
        raise AttributeError(f"module 'regplug' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"regplug.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
