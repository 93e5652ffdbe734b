"""Modules that had another path in 0.1.0: imports and pickles that name the old one still work for one release."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

# those that the documentation of 0.1.0 names, that its `regplug new` writes, or that a pickle may name
NEW_PATHS = {
    "regplug.attachment": "regplug.nn.attach",
    "regplug.backbone": "regplug.nn.backbone",
    "regplug.conditioner": "regplug.nn.conditioner",
    "regplug.conformance.parametrizing": "regplug.conformance.parametrize",
    "regplug.description": "regplug.registry.description",
    "regplug.discovery": "regplug.registry.discovery",
    "regplug.distributions": "regplug.registry.distributions",
    "regplug.entries": "regplug.registry.entries",
    "regplug.film": "regplug.nn.film",
    "regplug.golden": "regplug.bundle.golden",
    "regplug.hookspecs": "regplug.registry.hookspecs",
    "regplug.installed": "regplug.registry.default",
    "regplug.layout": "regplug.registry.layout",
    "regplug.loading": "regplug.bundle.load",
    "regplug.manifest": "regplug.format.manifest",
    "regplug.pairing": "regplug.nn.pairing",
    "regplug.program": "regplug.bundle.program",
    "regplug.readouts": "regplug.nn.readouts",
    "regplug.readouts.attentions": "regplug.nn.readouts.attentions",
    "regplug.readouts.averages": "regplug.nn.readouts.averages",
    "regplug.readouts.concatenations": "regplug.nn.readouts.concatenations",
    "regplug.readouts.sizes": "regplug.nn.readouts.sizes",
    "regplug.selection": "regplug.nn.select",
    "regplug.spec": "regplug.registry.spec",
    "regplug.staging": "regplug.registry.staging",
    "regplug.tokens": "regplug.nn.tokens",
    "regplug.verification": "regplug.bundle.verify",
}


class OldModules:
    """Finds a module under its old path, with one warning; it is the same module as under the new one."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """A spec for the old paths; None for any other."""
        return ModuleSpec(fullname, self) if fullname in NEW_PATHS else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Python makes an empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new path in place of the empty one."""
        from regplug.registry.deprecation import warn_once  # not before it is needed: every import regplug comes here

        new = NEW_PATHS[module.__name__]
        warn_once(f"module {module.__name__!r} is now {new!r}; use that, or the public name in regplug.")
        sys.modules[module.__name__] = import_module(new)
