"""Whole tracebacks on stderr, where ``--traceback`` or ``REGPLUG_TRACEBACK=1`` asks for them."""

from __future__ import annotations

import os
import sys
import traceback

from regplug.errors import escape
from regplug.registry.streams import own_stderr

VARIABLE = "REGPLUG_TRACEBACK"  # child processes inherit it


def show_traceback(error: BaseException) -> None:
    """Print an exception with all that it was raised from, if that is asked for: its message holds one line of it."""
    if os.environ.get(VARIABLE) != "1":
        return
    lines = "".join(traceback.format_exception(error)).splitlines()
    print("\n".join(map(escape, lines)), file=own_stderr() or sys.stderr)
