"""Runs the AOTInductor programs of regplug's bundles on NumPy arrays, without torch."""

from __future__ import annotations

import os

from regplug_runtime.bundle import Bundle, TensorSpec
from regplug_runtime.errors import BundleError
from regplug_runtime.library import VERSION as __version__

__all__ = ["Bundle", "BundleError", "TensorSpec", "__version__", "open"]


def open(  # noqa: A001 - as tarfile.open and gzip.open
    path: str | os.PathLike[str], *, digest: str | None = None, follow_links: bool = False
) -> Bundle:
    """Open a bundle: check the whole folder, load its best program for this CPU, and compare one golden case.

    A program is code from the maker of the bundle, and this runs it. Give the digest of the bundle that you know.

    Args:
        path: The bundle's folder.
        digest: The manifest's sha256 that the bundle must have; None: any.
        follow_links: Allow symbolic links to files, as hub caches and mounted volumes have them.

    Raises:
        BundleError: The bundle is damaged, has another digest, has no program for this CPU, or does not reproduce its
            golden case; or it needs bfloat16, and ml_dtypes is not installed.
    """
    return Bundle(path, digest=digest, follow_links=follow_links)
