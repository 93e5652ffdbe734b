"""What a path is that was meant to lead to a bundle's folder, or to a file, and does not."""

from __future__ import annotations

import os
import re
import stat

from regplug.errors import BundleError

MANIFEST = "manifest.json"
POINTER_BEGINS = b"version https://git-lfs.github.com/spec/"
POINTER_SIZE = 1024  # bytes that Git LFS allows for one
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
# `pathlib` takes one of the two slashes
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def is_pointer(descriptor: int) -> bool:
    """Whether a regular file that is open holds where Git LFS has the content, and not the content."""
    small = os.fstat(descriptor).st_size <= POINTER_SIZE
    return small and os.pread(descriptor, len(POINTER_BEGINS), 0) == POINTER_BEGINS


def is_url(path: str) -> bool:
    """Whether a path is the address of something on another machine: ``s3://bucket/b``."""
    return URL.match(path) is not None


def instead_of_folder(path: str) -> str:
    """What is at a path that is no folder, and what to do."""
    path = path.rstrip("/")
    begin = _first_bytes(path)
    folder = os.path.dirname(path)  # noqa: PTH120  # shown as the caller wrote it
    if begin.startswith(POINTER_BEGINS):
        return POINTER
    if os.path.lexists(os.path.join(folder, MANIFEST)):  # noqa: PTH118
        return f"a file in a bundle, not its folder; use {folder or '.'}"
    return _known(begin, "a folder") or "not a folder"


def instead_of_checkpoint(path: str) -> str:
    """What a file is that is no checkpoint, if it is something well known, and what to do; else nothing."""
    begin = _first_bytes(path)
    if os.path.basename(path) == MANIFEST and b'"bundle_format"' in begin:  # noqa: PTH119
        return OWN_MANIFEST
    return _known(begin, "a checkpoint")


def check_weights_file(owner: str, path: str) -> None:
    """Say what a file is that was meant to be weights, where it is something well known.

    Raises:
        BundleError: It is an archive, a pickle, a page of a web site, a bundle's folder, or its manifest.
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
    if begin[:1] == b"\x80" and begin[8:9] != b"{":  # the latter has a header of 128 bytes, or as many and more
        what = "use `regplug import` for a checkpoint of torch.save"
        raise BundleError(f"{owner}: a pickle, not a safetensors file; {what}.")


def _known(begin: bytes, wanted: str) -> str:
    if kind := _archive(begin):
        return f"a {kind} archive, not {wanted}; unpack it first"
    if begin.lstrip().lower().startswith(HTML):
        return f"a page of a web site, not {wanted}; download the file itself"
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
