"""The public names of a package: its ``__init__.pyi`` lists them, and each is loaded at its first use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module


def lazy_names(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package that is being imported."""
    module, modules = sys.modules[package], _read_names(package)

    def load_name(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name]), name)
        setattr(module, name, value)  # the next use does not come here
        return value

    def list_names() -> list[str]:
        return [*vars(module), *modules]

    return load_name, list_names, sorted(modules)


def _read_names(package: str) -> dict[str, str]:
    """Each public name, with the module that defines it.

    The stub is the one list, which type checkers read too: a line ``from MODULE import NAME as NAME`` for each name.
    """
    spec = sys.modules[package].__spec__
    # by the loader: the package may be in a zip file
    stub = spec.loader.get_data(f"{spec.submodule_search_locations[0]}/__init__.pyi").decode()  # type: ignore
    lines = [line.split() for line in stub.splitlines() if line.startswith("from ")]
    return {name: module for _, module, _, _, _, name in lines}
