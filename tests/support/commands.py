"""The ``regplug`` command, run in this process."""

import contextlib
import io
import sys
from unittest.mock import patch

from regplug.commands.main import answer


def run_command(*arguments: object) -> tuple[int, str, str]:
    """Run ``regplug`` with these arguments; gives its exit code, its stdout and its stderr.

    It does not call ``main``, which ends the process.
    """
    out, err = io.StringIO(), io.StringIO()
    argv = ["regplug", *map(str, arguments)]
    with patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = answer()
    return code, out.getvalue(), err.getvalue()
