"""One rule for a package that a plugin uses and that is not installed: what needs it cannot be used, all else can."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec


def missing_package(error: BaseException | None, own: Collection[str] = ()) -> str | None:
    """The top-level package that an import failed for, as its error or the cause of that says.

    Args:
        error: What an import raised.
        own: Top-level modules of the plugin itself: one of those that is missing is a fault of the plugin's.

    Returns:
        None where the import failed for another reason, or the package is there and something inside it is missing.
    """
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            root = error.name.partition(".")[0]
            if root not in own and not _is_installed(root):
                return root
        error = error.__cause__ or error.__context__
    return None


def wants(package: str) -> str:
    """What is said of it, by every command."""
    return f"wants the package {package!r}, which is not installed; install it to use this"


def _is_installed(root: str) -> bool:
    try:
        return find_spec(root) is not None
    except (ImportError, ValueError):
        return False
