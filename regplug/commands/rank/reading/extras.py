"""Imports the packages that some kinds of data need, which are extras of regplug."""

from __future__ import annotations

import importlib
from types import ModuleType

from regplug.errors import SpecError

PACKAGES = {"images": ("PIL", "Pillow", "image files"), "parquet": ("pyarrow", "pyarrow", "Parquet files")}


def import_extra(extra: str, module: str) -> ModuleType:
    """A module of the package that an extra installs.

    Args:
        extra: ``"images"`` or ``"parquet"``.
        module: The module, ``"PIL.Image"``.

    Raises:
        SpecError: The package is not installed; the message says how to install it.
    """
    top, package, what = PACKAGES[extra]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != top:
            raise
        raise SpecError(
            f"package {package}: expected to be installed, because {what} are read with it, got none; "
            f"use pip install 'regplug[{extra}]'."
        ) from error
