"""Where regplug keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$REGPLUG_CACHE_DIR``, else ``regplug`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("REGPLUG_CACHE_DIR"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regplug"
