"""regplug: pick a register readout by name, get the matching FiLM width, ship it to Python and C++.

Importing this package imports neither torch nor a plugin: every name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regplug.bundle.export import export as export
    from regplug.bundle.load import load as load
    from regplug.bundle.sign import sign as sign
    from regplug.bundle.verify import verify as verify
    from regplug.commands.audit.network import audit_network as audit_network
    from regplug.errors import BundleError as BundleError
    from regplug.errors import ConformanceError as ConformanceError
    from regplug.errors import ExportError as ExportError
    from regplug.errors import NameLookupError as NameLookupError
    from regplug.errors import PluginError as PluginError
    from regplug.errors import RegplugError as RegplugError
    from regplug.errors import ShapeError as ShapeError
    from regplug.errors import SpecError as SpecError
    from regplug.nn.attach import attach as attach
    from regplug.nn.backbone import layout_of as layout_of
    from regplug.nn.backbone import measure_backbone as measure_backbone
    from regplug.nn.conditioner import Conditioner as Conditioner
    from regplug.nn.film import KernelFiLMGenerator as KernelFiLMGenerator
    from regplug.nn.pairing import pair as pair
    from regplug.nn.select import SelectRegisters as SelectRegisters
    from regplug.nn.tokens import read_registers as read_registers
    from regplug.nn.weight_decay import param_groups as param_groups
    from regplug.registry.default import backbones as backbones
    from regplug.registry.default import create as create
    from regplug.registry.default import default_registry as default_registry
    from regplug.registry.default import resolve as resolve
    from regplug.registry.default import strategies as strategies
    from regplug.registry.description import StrategyDescription as StrategyDescription
    from regplug.registry.description import describe as describe
    from regplug.registry.entries import BackboneEntry as BackboneEntry
    from regplug.registry.entries import CheckpointSite as CheckpointSite
    from regplug.registry.entries import ExportBackendEntry as ExportBackendEntry
    from regplug.registry.entries import FiLMEntry as FiLMEntry
    from regplug.registry.entries import FiLMSite as FiLMSite
    from regplug.registry.entries import ReadoutEntry as ReadoutEntry
    from regplug.registry.hookspecs import hookimpl as hookimpl
    from regplug.registry.layout import TokenLayout as TokenLayout
    from regplug.registry.registry import Registry as Registry
    from regplug.registry.spec import ReadoutSpec as ReadoutSpec

_HOMES = {
    "BackboneEntry": "registry.entries",
    "BundleError": "errors",
    "CheckpointSite": "registry.entries",
    "Conditioner": "nn.conditioner",
    "ConformanceError": "errors",
    "ExportBackendEntry": "registry.entries",
    "ExportError": "errors",
    "FiLMEntry": "registry.entries",
    "FiLMSite": "registry.entries",
    "KernelFiLMGenerator": "nn.film",
    "NameLookupError": "errors",
    "PluginError": "errors",
    "ReadoutEntry": "registry.entries",
    "ReadoutSpec": "registry.spec",
    "Registry": "registry.registry",
    "RegplugError": "errors",
    "SelectRegisters": "nn.select",
    "ShapeError": "errors",
    "SpecError": "errors",
    "StrategyDescription": "registry.description",
    "TokenLayout": "registry.layout",
    "attach": "nn.attach",
    "audit_network": "commands.audit.network",
    "backbones": "registry.default",
    "create": "registry.default",
    "default_registry": "registry.default",
    "describe": "registry.description",
    "export": "bundle.export",
    "hookimpl": "registry.hookspecs",
    "layout_of": "nn.backbone",
    "load": "bundle.load",
    "measure_backbone": "nn.backbone",
    "pair": "nn.pairing",
    "param_groups": "nn.weight_decay",
    "read_registers": "nn.tokens",
    "resolve": "registry.default",
    "sign": "bundle.sign",
    "strategies": "registry.default",
    "verify": "bundle.verify",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from regplug.registry.version import own_version

        return own_version()
    if name not in _HOMES:
        raise AttributeError(f"module 'regplug' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"regplug.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
