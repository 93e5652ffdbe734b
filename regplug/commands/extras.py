"""Imports the packages that some data and engines need, which are extras of regplug."""

from __future__ import annotations

import importlib
from types import ModuleType

from regplug.errors import SpecError

PACKAGES = {
    "PIL": ("Pillow", "image files are read with it"),
    "pyarrow": ("pyarrow", "Parquet and Arrow files are read with it"),
    "fsspec": ("fsspec", "files at an address are read with it"),
    "ray": ("ray", "it is the engine"),
}


def import_extra(extra: str, module: str) -> ModuleType:
    """A module of a package that an extra installs.

    Args:
        extra: The extra, ``"images"``.
        module: The module, ``"PIL.Image"``.

    Raises:
        SpecError: The package is not installed; the message says how to install it.
    """
    top = module.partition(".")[0]
    package, why = PACKAGES[top]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != top:
            raise
        raise SpecError(
            f"package {package}: expected to be installed, because {why}, got none; use pip install 'regplug[{extra}]'."
        ) from error
