"""Where regplug keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$REGPLUG_CACHE_DIR``, else ``regplug`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        OSError: The user has no home.
    """
    if own := os.environ.get("REGPLUG_CACHE_DIR"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "regplug"
    try:
        return Path.home() / ".cache" / "regplug"
    except RuntimeError as error:
        raise OSError("no home directory; set REGPLUG_CACHE_DIR") from error
