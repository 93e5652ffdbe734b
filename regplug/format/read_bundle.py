"""Opens a bundle: manifest, digest, and the checked bytes of every file it lists. Runs nothing, needs no torch."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from regplug.errors import BundleError, SpecError
from regplug.format.folder import MANIFEST, MAX_MANIFEST, Folder, read_folder
from regplug.format.manifest import GOLDEN, WEIGHTS, Manifest, ProgramRecord
from regplug.format.manifest_rules import parse_manifest
from regplug.registry.json_text import quote

DIGEST = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class BundleFiles:
    """A bundle as read: every listed file was there, whole, and had its digest.

    Args:
        path: The folder, as the caller gave it.
        manifest: What it is.
        digest: The manifest's sha256, which pins all of it.
        files: The bytes of the programs that were kept, by file.
        tensors: Those of ``weights.safetensors`` and ``golden.safetensors``.
        passed_over: What else is in the folder and was not opened, names as messages quote them.
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
        digest: The manifest's sha256, where the caller knows which bundle it must be.
        follow_links: Allow symbolic links to files, for hub caches and mounted volumes.
        keep: Which programs are kept in memory; the others are checked and dropped.

    Raises:
        BundleError: Anything is missing, added, changed or malformed; the message names it.
        SpecError: ``digest`` is none.
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
    """As ``read_bundle``, of whose files nothing is kept: they may be larger than the memory.

    Raises:
        BundleError: Anything is missing, added, changed or malformed; the message names it.
        SpecError: ``digest`` is none.
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
