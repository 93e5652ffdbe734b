"""The version of regplug, which is written only in ``include/regplug/version.h``."""

from __future__ import annotations

import re
from importlib.resources import files


def own_version() -> str:
    """The version of the package that is running, which needs no metadata."""
    header = files("regplug").joinpath("include", "regplug", "version.h").read_text("utf-8")
    found = re.search(r'^#define REGPLUG_VERSION "([^"]+)"', header, re.MULTILINE)
    return found[1] if found else "unknown"
