"""Says what is at a path that should be a bundle's folder or a weights file, but is not."""

from __future__ import annotations

import os
import re
import stat

from regplug.errors import BundleError

MANIFEST = "manifest.json"
POINTER_BEGINS = b"version https://git-lfs.github.com/spec/"
POINTER_SIZE = 1024  # bytes, by the Git LFS specification
POINTER = "a Git LFS pointer, not the file itself; run `git lfs pull`"
OWN_MANIFEST = "a bundle's manifest, not its weights; use weights.safetensors next to it, or the folder for the bundle"
ARCHIVES = (
    (b"PK\x03\x04", "zip"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
)
TAR_MARK, TAR_AT = b"ustar", 257
HTML = (b"<!doctype html", b"<html")
# one slash is enough: `pathlib` drops the second
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def is_pointer(descriptor: int) -> bool:
    """Whether an open regular file is a Git LFS pointer instead of the content."""
    small = os.fstat(descriptor).st_size <= POINTER_SIZE
    return small and os.pread(descriptor, len(POINTER_BEGINS), 0) == POINTER_BEGINS


def is_url(path: str) -> bool:
    """Whether a path is a URL, such as ``s3://bucket/b``."""
    return URL.match(path) is not None


def instead_of_folder(path: str) -> str:
    """What is at a path that is not a folder, and what to do."""
    path = path.rstrip("/")
    begin = _first_bytes(path)
    folder = os.path.dirname(path)  # noqa: PTH120  # keeps the caller's spelling
    if begin.startswith(POINTER_BEGINS):
        return POINTER
    if os.path.lexists(os.path.join(folder, MANIFEST)):  # noqa: PTH118
        return f"a file in a bundle, not its folder; use {folder or '.'}"
    return _known(begin, "a folder") or "not a folder"


def instead_of_checkpoint(path: str) -> str:
    """What a file is that is not a checkpoint, and what to do; empty if its type is unknown."""
    begin = _first_bytes(path)
    if os.path.basename(path) == MANIFEST and b'"bundle_format"' in begin:  # noqa: PTH119
        return OWN_MANIFEST
    return _known(begin, "a checkpoint")


def check_weights_file(owner: str, path: str) -> None:
    """Refuse a file of another known type in place of weights.

    Raises:
        BundleError: It is an archive, a pickle, an HTML page, a bundle's folder, or its manifest.
    """
    if os.path.lexists(os.path.join(path, MANIFEST)):  # noqa: PTH118
        raise BundleError(f"{owner}: a bundle's folder, not its weights; use {path.rstrip('/')}/weights.safetensors.")
    begin = _first_bytes(path)
    if os.path.basename(path) == MANIFEST and begin.startswith(b"{"):  # noqa: PTH119
        raise BundleError(f"{owner}: {OWN_MANIFEST}.")
    if _archive(begin) == "zip":
        what = "unpack it, or use `regplug import` for a checkpoint of torch.save"
        raise BundleError(f"{owner}: a zip archive, not a safetensors file; {what}.")
    if known := _known(begin, "a safetensors file"):
        raise BundleError(f"{owner}: {known}.")
    if (
        begin[:1] == b"\x80" and begin[8:9] != b"{"
    ):  # byte 0 is also 0x80 in a safetensors file with a header of 128 bytes
        what = "use `regplug import` for a checkpoint of torch.save"
        raise BundleError(f"{owner}: a pickle, not a safetensors file; {what}.")


def _known(begin: bytes, wanted: str) -> str:
    if kind := _archive(begin):
        return f"a {kind} archive, not {wanted}; unpack it first"
    if begin.lstrip().lower().startswith(HTML):
        return f"a web page, not {wanted}; download the file itself"
    return ""


def _archive(begin: bytes) -> str:
    if begin[TAR_AT:].startswith(TAR_MARK):
        return "tar"
    return next((kind for magic, kind in ARCHIVES if begin.startswith(magic)), "")


def _first_bytes(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError):
        return b""
    try:
        return os.pread(descriptor, 512, 0) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    except OSError:
        return b""
    finally:
        os.close(descriptor)
