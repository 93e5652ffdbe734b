"""Lets the command import torch although another distribution's entry points cannot be read."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from types import ModuleType

from regplug.printing import complain

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"  # torch's own variable; it lists entry points to load device backends


class TorchGuard:
    """Looks at the entry points just before torch does; finds nothing itself.

    Where ``importlib.metadata`` raises, ``import torch`` does too.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Called by the import system for every module that is not loaded yet."""
        if name == "torch":
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
            if raised := skip_unreadable_backends():
                why = f"the metadata of a distribution cannot be read ({raised})"
                complain(f"warning: {why}, so torch loads no device backends of others; `regplug doctor` names it.")
        return None


def guard_torch() -> None:
    """Put a guard in front of the import of torch."""
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, TorchGuard())


def skip_unreadable_backends() -> str | None:
    """Where the entry points cannot be read, have torch look for none, here and in processes that are started here.

    Returns:
        What ``importlib.metadata`` raised; None where nothing had to be done.
    """
    if os.environ.get(AUTOLOAD, "1") != "1":
        return None
    try:
        entry_points(group="torch.backends")
    except Exception as error:  # which one depends on the Python and on the fault
        os.environ[AUTOLOAD] = "0"
        return type(error).__name__
    return None
