"""Model libraries in this process: opened from checked bytes, shared by programs with equal bytes, freed with the last.

The dynamic linker identifies a library by its path, here that of a file in memory, ``/proc/self/fd/N``. So a descriptor
stays open while its library is mapped: if its number were used again, the linker would give the old code.
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
# Its own symbols first: model libraries from elsewhere export all that they define, and one in the global scope (linked
# by the host, or preloaded) would receive this one's calls.
BINDING = os.RTLD_NOW | os.RTLD_LOCAL | os.RTLD_DEEPBIND
Runner = list[Callable[[list[Tensor]], list[Tensor]]]


class ModelLibrary:
    """An open model library, which is closed when nothing refers to this object.

    Args:
        runner: What runs it, in a list: emptying the list closes the library.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        """Run the program; the caller has checked the inputs."""
        return self._runner[0](inputs)


_open: weakref.WeakValueDictionary[str, ModelLibrary] = weakref.WeakValueDictionary()
# by digest, the descriptors of unused libraries that the linker does not unmap, as those with unique symbols
# (STB_GNU_UNIQUE)
_still_mapped: dict[str, int] = {}
# libraries to be closed: runner, digest, descriptor
_unused: deque[tuple[Runner, str, int]] = deque()


def open_model_library(where: str, data: bytes) -> ModelLibrary:
    """The library with these bytes: the open one if there is one.

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
    descriptor = _still_mapped.pop(digest, None)
    try:
        if descriptor is None:
            descriptor = _sealed(data)
    except OSError as error:
        raise BundleError(f"{where}: in memory: {error.strerror}.") from error
    path = f"/proc/self/fd/{descriptor}"
    try:
        bound = dlopen(path, BINDING)
        try:
            runner = [open_library(path)]  # finds the library that is open with BINDING
        finally:
            dlclose(bound)
    except (OSError, RuntimeError) as error:  # not a library, or one for another torch
        _forget(digest, descriptor)
        raise BundleError(f"{where}: {one_line(error).replace(f'{path}: ', '')}") from error
    library = ModelLibrary(runner)
    # not at exit: the system frees all memory, and threads may still run the library
    weakref.finalize(library, _end_of_use, runner, digest, descriptor).atexit = False
    return library


def _sealed(data: bytes) -> int:
    """A descriptor of a file with the checked bytes, which cannot be changed any more.

    The file is in memory or, where the system allows no such files (seccomp, gVisor), a file without a name, which no
    other process can open.
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
        return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)  # read-only


def _end_of_use(runner: Runner, digest: str, descriptor: int) -> None:
    _unused.append((runner, digest, descriptor))
    _free_unused()


def _free_unused() -> None:
    """Close unused libraries, unless another thread opens a program: that thread closes them afterwards.

    A finalizer may run at any point of any thread, so it must not wait for a lock.
    """
    while _unused and LOADING.acquire(blocking=False):
        try:
            runner, digest, descriptor = _unused.popleft()
            runner.clear()  # torch's runner closes the library
            _forget(digest, descriptor)
        except IndexError:  # another thread took the last one
            pass
        finally:
            LOADING.release()


def _forget(digest: str, descriptor: int) -> None:
    """Close the descriptor of a library, unless it is still mapped."""
    try:
        dlclose(dlopen(f"/proc/self/fd/{descriptor}", BINDING | os.RTLD_NOLOAD))
    except OSError:  # it is not mapped
        os.close(descriptor)
    else:
        _still_mapped[digest] = descriptor
