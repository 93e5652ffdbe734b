"""Model libraries in this process: opened from checked bytes, shared by all programs of the same, freed with the last.

The dynamic linker knows a library by its path, here that of a file in memory, ``/proc/self/fd/N``. So a descriptor
stays open while its library is mapped: its number, used again, would give the old code.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile
import weakref
from _ctypes import dlclose, dlopen
from collections import deque
from collections.abc import Callable

from torch import Tensor

from regplug.backends.inductor_private import open_library
from regplug.backends.interface import LOADING
from regplug.backends.program_folder import program_folder
from regplug.errors import BundleError, one_line

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
NO_MEMORY_FILES = {errno.ENOSYS, errno.EPERM, errno.EACCES}
# Its own symbols first: model libraries of other makers export all that they define, and one of those in the global
# scope, linked by the host or preloaded, would take over this one's calls.
BINDING = os.RTLD_NOW | os.RTLD_LOCAL | os.RTLD_DEEPBIND


Runner = list[Callable[[list[Tensor]], list[Tensor]]]


class ModelLibrary:
    """An open model library; nothing else refers to it, so that it is freed with its last user.

    Args:
        runner: What runs it, in a list: who empties that closes the library.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        """Run the program; its inputs are checked."""
        return self._runner[0](inputs)


_open: weakref.WeakValueDictionary[str, ModelLibrary] = weakref.WeakValueDictionary()
# of libraries that nobody uses and that do not unmap, as those with symbols that a process has once (STB_GNU_UNIQUE)
_kept: dict[str, int] = {}
# those to be freed: what runs each, its digest, its descriptor
_unused: deque[tuple[Runner, str, int]] = deque()


def open_model_library(where: str, data: bytes) -> ModelLibrary:
    """The library with these bytes: the one that is open, or a new one.

    Args:
        where: The program's file, for messages.
        data: Its bytes, checked.

    Raises:
        BundleError: It does not load.
    """
    digest = hashlib.sha256(data).hexdigest()
    with LOADING:
        library = _open.get(digest)
        if library is None:
            library = _load(where, digest, data)
            _open[digest] = library
    _free_unused()
    return library


def _load(where: str, digest: str, data: bytes) -> ModelLibrary:
    descriptor = _kept.pop(digest, None)
    try:
        if descriptor is None:
            descriptor = _sealed(data)
    except OSError as error:
        raise BundleError(f"{where}: in memory: {error.strerror}.") from error
    path = f"/proc/self/fd/{descriptor}"
    try:
        bound = dlopen(path, BINDING)
        try:
            runner = [open_library(path)]  # finds it bound
        finally:
            dlclose(bound)
    except (OSError, RuntimeError) as error:  # no library, or one of another torch
        _forget(digest, descriptor)
        raise BundleError(f"{where}: {one_line(error).replace(f'{path}: ', '')}") from error
    library = ModelLibrary(runner)
    # not at exit: the system frees all of it, and threads may still run it
    weakref.finalize(library, _end_of_use, runner, digest, descriptor).atexit = False
    return library


def _sealed(data: bytes) -> int:
    """A descriptor of the checked bytes, as a file that nobody can change any more.

    It is in memory, or where the system has no such files (seccomp, gVisor) one without a name, which nobody else can
    open.
    """
    try:
        descriptor = os.memfd_create("regplug-program", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        if error.errno not in NO_MEMORY_FILES:
            raise
        return _unnamed(data)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _unnamed(data: bytes) -> int:
    folder = program_folder()
    if folder is None:
        raise OSError(None, "no files there (memfd_create), and no temporary folder for programs; set TMPDIR")
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(data)
        file.flush()
        return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)  # it is written to no more


def _end_of_use(runner: Runner, digest: str, descriptor: int) -> None:
    _unused.append((runner, digest, descriptor))
    _free_unused()


def _free_unused() -> None:
    """Free what has no user, unless another thread opens a program: it is freed after that.

    A finalizer runs wherever the garbage collector does, so it must not wait for a lock.
    """
    while _unused and LOADING.acquire(blocking=False):
        try:
            runner, digest, descriptor = _unused.popleft()
            runner.clear()  # torch's runner closes the library
            _forget(digest, descriptor)
        except IndexError:  # another thread was faster
            pass
        finally:
            LOADING.release()


def _forget(digest: str, descriptor: int) -> None:
    """Close the descriptor of a library, unless it is still mapped."""
    try:
        dlclose(dlopen(f"/proc/self/fd/{descriptor}", BINDING | os.RTLD_NOLOAD))
    except OSError:  # it is not
        os.close(descriptor)
    else:
        _kept[digest] = descriptor
