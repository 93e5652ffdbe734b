"""From what the user names, paths, folders, patterns and fsspec addresses, to a list of files. Imports no torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from regplug.commands.extras import import_extra
from regplug.errors import SpecError, class_name, one_line, shorten

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".safetensors": "safetensors",
}
MAGIC = "*?["
REMOTE = ("://", "::")  # fsspec's protocols, and its chains


@dataclass(frozen=True)
class InputFile:
    """One file to read.

    Args:
        address: An absolute path, or an address for fsspec.
        name: Its path below the folder or pattern that named it, without suffix: where its results go.
        kind: ``parquet``, ``arrow`` or ``safetensors``.
        size: Bytes.
        stamp: Another one after the file was changed.
    """

    address: str
    name: str
    kind: str
    size: int
    stamp: str

    @property
    def owner(self) -> str:
        """The file in messages."""
        return f"input {self.address}"


def find_files(inputs: Sequence[str], output: Path | None = None) -> list[InputFile]:
    """The files that paths, folders, patterns and addresses name, in their order; those of a pattern sorted.

    Args:
        inputs: What the user named.
        output: The folder of the results, which are no inputs, also if an input is a folder above it.

    Raises:
        SpecError: There is none for an input, one has an unknown suffix, or two would have results of one name.
    """
    found = [
        file for one in inputs for file in (_remote(one) if is_remote(one) and not Path(one).exists() else _local(one))
    ]
    found = list({one.address: one for one in reversed(found)}.values())[::-1]  # the first name of each
    found = [one for one in found if output is None or output.absolute() not in Path(one.address).parents]
    if not found:
        raise SpecError(f"inputs: expected files outside the output {output}, got only results.")
    for name, count in Counter(file.name for file in found).items():
        if count > 1:
            same = [file.address for file in found if file.name == name]
            raise SpecError(
                f"inputs: expected files with different names, got {shorten(same)}, whose results would have one name; "
                "rename one, or name the folder above them."
            )
    return found


def is_remote(address: str) -> bool:
    """Whether fsspec reads an address, and not the file system."""
    return not address.startswith("/") and any(one in address for one in REMOTE)


def _local(given: str) -> list[InputFile]:
    path = Path(given).absolute()
    if path.is_dir():
        root, paths = path, [one for one in _below(path) if _has_suffix(one) and not _is_hidden(one, path)]
    elif path.exists() or not any(one in given for one in MAGIC):
        root, paths = path.parent, [path]
    else:
        root = Path(*_until_magic(path.parts))
        pattern = str(path.relative_to(root))
        hidden = any(part.startswith((".", "_")) for part in Path(pattern).parts)  # asked for
        paths = [one for one in root.glob(pattern) if _is_file(one) and (hidden or not _is_hidden(one, root))]
    if not paths:
        raise SpecError(f"input {given}: expected files ending in {', '.join(SUFFIXES)}, got none.")
    return [_local_file(one, root, is_named=one == path) for one in sorted(paths)]


def _below(root: Path) -> Iterator[Path]:
    """All files in a folder and its folders; links to folders are not followed."""

    def fail(error: OSError) -> None:
        raise SpecError(f"input {error.filename}: expected a folder that can be read, got {error.strerror}.") from error

    for folder, _, names in os.walk(root, onerror=fail):
        yield from (path for path in (Path(folder, name) for name in names) if _is_file(path))


def _is_file(path: Path) -> bool:
    """Whether it is a file, or a link that leads nowhere, which is reported; no pipe or device."""
    return path.is_file() or not path.exists()


def _until_magic(parts: Sequence[str]) -> Sequence[str]:
    first = next(index for index, part in enumerate(parts) if any(one in part for one in MAGIC))
    return parts[:first]


def _is_hidden(path: PurePath, root: PurePath | str) -> bool:
    below = path.relative_to(root) if str(root) else path
    return any(part.startswith((".", "_")) for part in below.parts)


def _has_suffix(path: PurePath) -> bool:
    return path.suffix.lower() in SUFFIXES


def _local_file(path: Path, root: Path, is_named: bool) -> InputFile:
    kind = _kind(str(path))
    below = path.relative_to(root)
    if ".." in below.parts:
        raise SpecError(f"input {path}: expected a path without .. behind the first *, got one.")
    try:
        size, stamp = path.stat().st_size, stamp_of(path)
        if not path.is_file():
            raise SpecError(f"input {path}: expected a file, got a pipe or a device.")
    except OSError as error:
        if is_named:
            raise SpecError(f"input {path}: expected a file, got {error.strerror}.") from error
        size, stamp = 0, ""  # as of a link that leads nowhere: it fails alone when it is opened
    return InputFile(str(path), below.with_suffix("").as_posix(), kind, size, stamp)


def stamp_of(path: Path) -> str:
    """Another text after a local file was changed."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"  # a link may lead to another file of the same age


def stamp_now(file: InputFile) -> str:
    """The file's stamp, as it is now.

    Raises:
        SpecError: The file is gone.
    """
    with errors_of(file.owner):
        if not is_remote(file.address):
            return stamp_of(Path(file.address))
        system, path = _system_of(file.address)
        system.invalidate_cache()
        return _stamp_of_facts(system.info(path))


def _stamp_of_facts(facts: Mapping[str, Any]) -> str:
    """What a file system says of a file's state: its size, and what changes with the content."""
    keys = ("ETag", "etag", "mtime", "LastModified", "updated", "CRC")
    return f"{int(facts.get('size') or 0)} {next((facts[key] for key in keys if key in facts), '')}"


def _remote(given: str) -> list[InputFile]:
    *links, last = given.split("::")
    if links and "://" not in last:  # a later run may be called from another folder
        given = "::".join([*links, f"file://{Path(last).absolute()}"])
    with errors_of(f"input {given}"):
        system, pattern = import_extra("run", "fsspec.core").url_to_fs(given)
        if system.isdir(pattern):
            root = pattern
            paths = [one for one in system.find(pattern) if _has_suffix(PurePosixPath(one))]
            paths = [one for one in paths if not _is_hidden(PurePosixPath(one), root)]
        elif any(one in pattern for one in MAGIC):
            root = "/".join(_until_magic(pattern.split("/")))
            paths = [one for one in system.glob(pattern) if not _is_hidden(PurePosixPath(one), root)]
        else:
            root, paths = str(PurePosixPath(pattern).parent), [pattern]
        if not paths:
            raise SpecError(f"input {given}: expected files ending in {', '.join(SUFFIXES)}, got none.")
        return [_remote_file(given, system, pattern, one, root) for one in sorted(paths)]


def _remote_file(given: str, system: Any, pattern: str, path: str, root: str) -> InputFile:
    # of a chain as zip://*.parquet::s3://bucket/all.zip, the first link has the path
    rest = given.split("::")[1:]
    address = given if path == pattern else "::".join([system.unstrip_protocol(path), *rest])
    below = PurePosixPath(path)
    name = below.relative_to(root) if root not in ("", ".") else below
    facts = system.info(path)
    size, stamp = int(facts.get("size") or 0), _stamp_of_facts(facts)
    return InputFile(address, name.with_suffix("").as_posix().lstrip("/"), _kind(path), size, stamp)


def _kind(path: str) -> str:
    suffix = PurePosixPath(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise SpecError(f"input {path}: expected a file ending in {', '.join(SUFFIXES)}, got {suffix or 'no ending'}.")
    return SUFFIXES[suffix]


@contextmanager
def errors_of(owner: str) -> Any:
    """Give what a file system or pyarrow raises as one error.

    Raises:
        SpecError: Anything in the block failed; the message names the owner.
    """
    try:
        yield
    except SpecError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # file systems of fsspec raise anything
        raise SpecError(f"{owner}: {class_name(error)}: {one_line(error)}") from error


@lru_cache(8)  # some file systems, as that of an archive, are closed with the last reference
def _system_of(address: str) -> Any:
    return import_extra("run", "fsspec.core").url_to_fs(address)


def open_file(file: InputFile) -> Any:
    """A file for pyarrow, and for ``read`` and ``seek``."""
    if is_remote(file.address):
        system, path = _system_of(file.address)
        return system.open(path, "rb")
    return import_extra("run", "pyarrow").OSFile(os.fspath(file.address), "rb")
