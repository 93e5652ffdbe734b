"""The public names of a package: its ``__init__.pyi`` lists them, and each is loaded at its first use."""

from __future__ import annotations

import sys
from importlib import import_module


def read_names(package: str) -> dict[str, str]:
    """Each public name of a package that is being imported, with the module that defines it.

    The stub is the one list, which type checkers read too: a line ``from MODULE import NAME as NAME`` for each name.
    """
    spec = sys.modules[package].__spec__
    # by the loader: the package may be in a zip file
    stub = spec.loader.get_data(f"{spec.submodule_search_locations[0]}/__init__.pyi").decode()  # type: ignore
    lines = [line.split() for line in stub.splitlines() if line.startswith("from ")]
    return {name: module for _, module, _, _, _, name in lines}


def load_name(package: str, modules: dict[str, str], name: str) -> object:
    """What a public name of a package means; from now on it is an attribute of the package.

    Raises:
        AttributeError: The package has no such name.
    """
    if name not in modules:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    value = getattr(import_module(modules[name]), name)
    setattr(sys.modules[package], name, value)
    return value
