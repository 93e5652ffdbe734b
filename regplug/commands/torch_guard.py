"""Guards the import of torch: against unreadable entry points of other packages, and against too little memory."""

from __future__ import annotations

import mmap
import os
import resource
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from regplug.commands.printing import complain

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"  # torch's own variable: whether to load device backends by entry points
LIBRARIES = ("libtorch_cpu.so", "libtorch_python.so")
WORKING_SPACE = 128 << 20  # address space that torch and numpy need at start, in addition to the libraries


class TorchGuard:
    """An import finder that finds nothing, but checks the address space and the entry points just before torch loads.

    If ``importlib.metadata`` raises, ``import torch`` does too. If memory runs out while torch's libraries start, they
    end the process.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The import system calls this for every module that is not loaded yet."""
        if name == "torch":
            check_room()
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
            if raised := skip_unreadable_backends():
                why = f"the metadata of a distribution cannot be read ({raised})"
                complain(f"warning: {why}, so torch loads no device backends of other packages; see `regplug doctor`.")
        return None


def guard_torch() -> None:
    """Install the guard, unless torch is imported already."""
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, TorchGuard())


def check_room() -> None:
    """Check that the process may map torch's libraries, if its address space is limited (``ulimit -v``).

    Raises:
        MemoryError: It may not.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return
    found = PathFinder.find_spec("torch")
    if found is None or found.origin is None:
        return
    libraries = [Path(found.origin).parent / "lib" / name for name in LIBRARIES]
    needed = sum(library.stat().st_size for library in libraries if library.exists())
    try:
        mmap.mmap(-1, needed + WORKING_SPACE).close()
    except OSError as error:
        raise MemoryError("torch's libraries") from error


def skip_unreadable_backends() -> str | None:
    """If the entry points cannot be read, make torch ignore them, in this process and its children.

    Returns:
        The name of the exception that ``importlib.metadata`` raised; None if nothing had to be done.
    """
    if os.environ.get(AUTOLOAD, "1") != "1":
        return None
    try:
        entry_points(group="torch.backends")
    except Exception as error:  # which one depends on the Python and on the fault
        os.environ[AUTOLOAD] = "0"
        return type(error).__name__
    return None
