"""Full tracebacks on stderr, with ``--traceback`` or ``REGPLUG_TRACEBACK=1``."""

from __future__ import annotations

import os
import sys
import traceback

from regplug.errors import escape
from regplug.registry.streams import own_stderr

VARIABLE = "REGPLUG_TRACEBACK"  # child processes inherit it


def show_traceback(error: BaseException) -> None:
    """Print an exception and its causes, if the user wants that; a message holds only one line of it."""
    if os.environ.get(VARIABLE) != "1":
        return
    lines = "".join(traceback.format_exception(error)).splitlines()
    print("\n".join(map(escape, lines)), file=own_stderr() or sys.stderr)
