"""Packages that a plugin uses and that are not installed: only what needs them cannot be used."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec


def missing_package(error: BaseException | None, own: Collection[str] = ()) -> str | None:
    """The missing top-level package that made an import fail, by its error or the cause of that.

    Args:
        error: The exception of an import.
        own: Top-level modules of the plugin itself: if one of them is missing, the plugin is broken.

    Returns:
        None if the import failed for another reason, or the package is installed and something inside it is missing.
    """
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            root = error.name.partition(".")[0]
            if root not in own and not _is_installed(root):
                return root
        error = error.__cause__ or error.__context__
    return None


def wants(package: str) -> str:
    """What every command says about a missing package."""
    return f"wants the package {package!r}, which is not installed; install it to use this"


def _is_installed(root: str) -> bool:
    try:
        return find_spec(root) is not None
    except (ImportError, ValueError):
        return False
