"""Reads a bundle: its manifest, its digest, and the checked bytes of its files. Runs no code; needs no torch."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from regplug.errors import BundleError, SpecError
from regplug.format.folder import MANIFEST, Folder, read_folder
from regplug.format.limits import MAX_MANIFEST
from regplug.format.manifest import GOLDEN, WEIGHTS, Manifest, ProgramRecord
from regplug.format.manifest_rules import parse_manifest
from regplug.registry.json_text import quote

DIGEST = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class BundleFiles:
    """A bundle as read: every listed file exists and has the right size and digest.

    Args:
        path: The folder, as the caller gave it.
        manifest: Its manifest.
        digest: The manifest's sha256, which pins the whole bundle.
        files: The bytes of the kept programs, by file name.
        tensors: The bytes of ``weights.safetensors`` and ``golden.safetensors``.
        passed_over: Other files in the folder, which were not opened; names are escaped for messages.
    """

    path: str
    manifest: Manifest
    digest: str
    files: Mapping[str, bytes]
    tensors: Mapping[str, bytearray]
    passed_over: tuple[str, ...] = ()


def read_bundle(
    directory: str | os.PathLike[str],
    *,
    digest: str | None = None,
    follow_links: bool = False,
    keep: Callable[[ProgramRecord], bool] = lambda program: False,
) -> BundleFiles:
    """Read and check a bundle.

    Args:
        directory: The bundle's folder.
        digest: The sha256 that the manifest must have; None for any.
        follow_links: Allow symbolic links to files, for hub caches and mounted volumes.
        keep: Which programs to keep in memory; the others are only checked.

    Raises:
        BundleError: Anything is missing, added, changed or malformed; the message names it.
        SpecError: ``digest`` is not 64 hexadecimal digits.
    """
    return _read(
        directory,
        digest,
        follow_links,
        lambda manifest: {WEIGHTS, GOLDEN, *(program.file for program in manifest.programs if keep(program))},
    )


def check_bundle(
    directory: str | os.PathLike[str], *, digest: str | None = None, follow_links: bool = False
) -> BundleFiles:
    """As ``read_bundle``, without keeping any file: they may be larger than the memory.

    Raises:
        BundleError: Anything is missing, added, changed or malformed; the message names it.
        SpecError: ``digest`` is not 64 hexadecimal digits.
    """
    return _read(directory, digest, follow_links, lambda manifest: set())


def _read(
    directory: str | os.PathLike[str],
    digest: str | None,
    follow_links: bool,
    kept_of: Callable[[Manifest], Collection[str]],
) -> BundleFiles:
    if digest is not None and not DIGEST.fullmatch(digest):
        raise SpecError(f"digest: expected 64 hexadecimal digits, got {quote(digest)}.")

    def read(folder: Folder) -> BundleFiles:
        data = folder.read(MANIFEST, at_most=MAX_MANIFEST)
        found = hashlib.sha256(data).hexdigest()
        if digest is not None and found != digest.lower():
            raise BundleError(f"bundle {folder.path}: {MANIFEST}: sha256 is {found}, pinned is {digest.lower()}.")
        manifest = parse_manifest(folder.path, data)
        passed_over = folder.check_listing(manifest.files)
        kept = kept_of(manifest)
        files, tensors = {}, {}
        for name, record in manifest.files.items():
            if name not in kept:
                folder.check(name, record.size, record.sha256)
            elif name in (WEIGHTS, GOLDEN):
                tensors[name] = folder.read_tensors(name, record.size, record.sha256)
            else:
                files[name] = folder.read_checked(name, record.size, record.sha256)
        return BundleFiles(folder.path, manifest, found, files, tensors, passed_over)

    return read_folder(directory, follow_links, read)
