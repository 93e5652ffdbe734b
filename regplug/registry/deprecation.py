"""Names and options that were renamed: the old ones still work, with one warning in a process."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any

from regplug.errors import SpecError

_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Give a FutureWarning, which users see by default, at the line outside regplug that led here."""
    if message in _warned:
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "regplug":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, FutureWarning, stacklevel=level)
    _warned.add(message)  # after it: where warnings are errors, each use must raise


def current_options(owner: str, options: Mapping[str, Any], old_options: Mapping[str, str]) -> dict[str, Any]:
    """The options under their current names, in the order given.

    Raises:
        SpecError: An option is given under both names.
    """
    current = {}
    for option, value in options.items():
        new = old_options.get(option, option)
        if new != option:
            if new in options or new in current:
                raise SpecError(f"{owner}: option {option!r}: expected only {new!r}, its new name, got both.")
            warn_once(f"{owner}: option {option!r} is now named {new!r}; use that.")
        current[new] = value
    return current
