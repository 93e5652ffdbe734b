"""Reads a bundle's folder as ``docs/bundle.md`` demands: through one handle, each file once, digest checked first."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from regplug.errors import BundleError, MissingFileError
from regplug.format.limits import MAX_ENTRIES, MAX_REOPENS
from regplug.format.wrong_path import MANIFEST as MANIFEST
from regplug.format.wrong_path import POINTER, instead_of_folder, is_pointer, is_url

# the format's file names begin with these words; an unlisted file must not
RESERVED = ("manifest", "weights", "golden", "program")
FOREIGN = re.compile(rb"[^A-Za-z0-9._-]")
CHUNK = 1 << 20

T = TypeVar("T")


class Folder:
    """An open handle on a bundle's folder; files are read relative to it.

    Args:
        path: The folder, as the caller gave it.
        descriptor: The open handle.
        follow_links: Whether symbolic links to files are allowed.
    """

    def __init__(self, path: str, descriptor: int, follow_links: bool) -> None:
        self.path = path
        self._descriptor = descriptor
        self._follow_links = follow_links

    def read(self, name: str, at_most: int) -> bytes:
        """All bytes of a regular file of at most ``at_most`` bytes, opened and read once.

        Raises:
            BundleError: It is missing, no regular file, a link, or larger.
        """
        with self._open(name) as (descriptor, found):
            if found > at_most:
                raise BundleError(f"{self._owner(name)}: expected at most {at_most} bytes, got {found}.")
            data = _read_all(self._owner(name), descriptor, found)
        self._check_size(name, found, len(data))
        return data

    def read_checked(self, name: str, size: int, sha256: str) -> bytes:
        """All bytes of a regular file of this size and digest, opened and read once.

        Raises:
            BundleError: It is missing, no regular file, a link, or has another size or digest.
        """
        with self._open(name) as (descriptor, found):
            self._check_size(name, size, found)
            data = _read_all(self._owner(name), descriptor, size)
        self._check_size(name, size, len(data))
        self._check_digest(name, sha256, hashlib.sha256(data).hexdigest())
        return data

    def read_tensors(self, name: str, size: int, sha256: str) -> bytearray:
        """As ``read_checked``, into writable memory that tensors can share.

        Raises:
            BundleError: As ``read_checked``.
        """
        with self._open(name) as (descriptor, found):
            self._check_size(name, size, found)
            data = read_array(self._owner(name), descriptor, size)
        self._check_size(name, size, len(data))
        self._check_digest(name, sha256, hashlib.sha256(data).hexdigest())
        return data

    def check(self, name: str, size: int, sha256: str) -> None:
        """Check a file as ``read_checked`` does, without keeping it: it may be larger than the memory.

        Raises:
            BundleError: As ``read_checked``.
        """
        digest, total = hashlib.sha256(), 0
        with self._open(name) as (descriptor, found):
            self._check_size(name, size, found)
            while part := os.read(descriptor, min(CHUNK, size - total)):
                digest.update(part)
                total += len(part)
        self._check_size(name, size, total)
        self._check_digest(name, sha256, digest.hexdigest())

    def check_listing(self, listed: Iterable[str]) -> tuple[str, ...]:
        """Refuse an unlisted file with a name that is reserved for bundles.

        Returns:
            The other names in the folder, escaped for messages; these files are never opened.

        Raises:
            BundleError: There is such a file, or the folder has too many names.
        """
        own = {*listed, MANIFEST}
        try:
            with os.scandir(self._descriptor) as entries:
                names = [os.fsencode(entry.name) for entry in islice(entries, MAX_ENTRIES + 1)]
        except OSError as error:
            raise BundleError(f"bundle {self.path}: {error.strerror}.") from error
        if len(names) > MAX_ENTRIES:
            raise BundleError(f"bundle {self.path}: expected at most {MAX_ENTRIES} files, got more.")
        others = [name for name in map(_format_name, sorted(names)) if name not in own]
        for name in others:
            if name.startswith(RESERVED):
                raise BundleError(f"bundle {self.path}: {name}: not listed in the manifest; remove it.")
        return tuple(others)

    def was_replaced(self) -> bool:
        """Whether the path now leads to another folder, or to nothing."""
        try:
            there = os.stat(self.path)
        except OSError:
            return True
        here = os.fstat(self._descriptor)
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)

    def _owner(self, name: str) -> str:
        return f"bundle {self.path}: {name}"

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[int, int]]:
        fix = "use a folder that `regplug export` wrote" if name == MANIFEST else "export the bundle again"
        with opened_file(self._owner(name), name, f"; {fix}", self._follow_links, self._descriptor) as descriptor:
            yield descriptor, os.fstat(descriptor).st_size

    def _check_size(self, name: str, wanted: int, found: int) -> None:
        if found != wanted:
            raise BundleError(f"{self._owner(name)}: expected {wanted} bytes, got {found}; export the bundle again.")

    def _check_digest(self, name: str, wanted: str, found: str) -> None:
        if found != wanted:
            raise BundleError(f"{self._owner(name)}: sha256 differs from the manifest; export the bundle again.")


def read_folder(path: str | os.PathLike[str], follow_links: bool, read: Callable[[Folder], T]) -> T:
    """Run ``read`` on the folder; run it again if the folder was replaced while it was read.

    A bundle is replaced by exchanging whole folders, so one handle always shows one bundle. The old folder is then
    deleted; a reader sees that as a missing file.

    Raises:
        BundleError: There is no such folder, or ``read`` raised it.
    """
    for _ in range(MAX_REOPENS):
        with _opened(os.fspath(path), follow_links) as folder:
            try:
                return read(folder)
            except MissingFileError:
                if not folder.was_replaced():
                    raise
    raise BundleError(f"bundle {os.fspath(path)}: replaced {MAX_REOPENS} times while it was read; try again.")


def read_single_file(owner: str, path: str, at_most: int | None = None) -> bytes:
    """All bytes of a regular file outside a bundle; symbolic links are followed.

    Raises:
        BundleError: It is missing, no regular file, larger than ``at_most`` bytes, or cannot be read.
    """
    with opened_file(owner, path) as descriptor:
        size = os.fstat(descriptor).st_size
        if at_most is not None and size > at_most:
            raise BundleError(f"{owner}: expected at most {at_most} bytes, got {size}.")
        return _read_all(owner, descriptor, size)


@contextmanager
def opened_file(
    owner: str, path: str, if_missing: str = "", follow_links: bool = True, folder: int | None = None
) -> Iterator[int]:
    """An open descriptor of a regular file; its path is relative to the descriptor ``folder``, if given.

    Raises:
        BundleError: It is missing, no regular file, a link that must not be followed, or cannot be read.
    """
    # non-blocking: opening a FIFO would hang
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if follow_links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags, dir_fd=folder)
    except FileNotFoundError:
        raise MissingFileError(f"{owner}: missing{if_missing}.") from None
    except ValueError:
        raise BundleError(f"{owner}: expected a path without NUL, got one with NUL.") from None
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_links:
            raise BundleError(f"{owner}: a symbolic link; use follow_links to follow it.") from None
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket, or a device without a driver
            raise BundleError(f"{owner}: not a regular file.") from None
        raise BundleError(f"{owner}: {error.strerror}.") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BundleError(f"{owner}: not a regular file.")
        if is_pointer(descriptor):
            raise BundleError(f"{owner}: {POINTER}.")
        yield descriptor
    except OSError as error:
        raise BundleError(f"{owner}: {error.strerror}.") from error
    finally:
        os.close(descriptor)


@contextmanager
def _opened(path: str, follow_links: bool) -> Iterator[Folder]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        found = "a URL, not a folder; download it first" if is_url(path) else "no such folder"
        raise BundleError(f"bundle {path}: {found}.") from None
    except NotADirectoryError:
        raise BundleError(f"bundle {path}: {instead_of_folder(path)}.") from None
    except ValueError:
        raise BundleError(f"bundle {path}: expected a path without NUL, got one with NUL.") from None
    except OSError as error:
        raise BundleError(f"bundle {path}: {error.strerror}.") from error
    try:
        yield Folder(path, descriptor, follow_links)
    finally:
        os.close(descriptor)


def read_array(owner: str, descriptor: int, size: int) -> bytearray:
    """``size`` bytes of an open file, fewer if it is shorter, in writable memory.

    Raises:
        BundleError: There is not enough memory.
    """
    try:
        data = bytearray(size)
    except MemoryError:
        raise _out_of_memory(owner, size) from None
    done = 0
    with memoryview(data) as view:
        while done < size and (got := os.readv(descriptor, [view[done:]])):  # one call reads at most 2 GiB
            done += got
    del data[done:]
    return data


def _read_all(owner: str, descriptor: int, size: int) -> bytes:
    try:
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(size)  # one block, also above 2 GiB
    except MemoryError:
        raise _out_of_memory(owner, size) from None


def _out_of_memory(owner: str, size: int) -> BundleError:
    return BundleError(f"{owner}: expected memory for {size} bytes, got none.")


def _format_name(name: bytes) -> str:
    """A file name, which may be any bytes, for a message: bytes not allowed in a bundle's file name as ``\\xHH``."""
    return FOREIGN.sub(lambda found: f"\\x{ord(found[0]):02x}".encode(), name).decode("ascii")
