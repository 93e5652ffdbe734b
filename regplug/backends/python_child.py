"""Starts Python so that no file of the working directory is imported, and all else is that this process would import.

``python -m`` and ``python -c`` put the working directory first on the path, and ``-P``, which does not, came with 3.11.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# `sys` is built in; nothing else is imported before the path is right. What the interpreter found on its own (site,
# PYTHONPATH) stays, even the working directory; what this process has comes first, in its order.
START = (
    "import sys; own = [one for one in sys.path if one]; paths, here = eval(sys.argv.pop(1)); "
    "sys.path[:] = [one for one in paths if one != here or one in own]; "
    "sys.path += [one for one in own if one not in sys.path]; "
)
MODULE = START + "import runpy; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module as ``python -m`` does, with the import path of this process."""
    return [sys.executable, "-c", MODULE, _path(), module, *arguments]


def python_code(code: str, *arguments: str) -> list[str]:
    """The command that runs some lines of code; ``sys.argv[1:]`` are the arguments."""
    return [sys.executable, "-c", f"{START}\n{code}", _path(), *arguments]


def import_path() -> list[str]:
    """``sys.path`` from the root, without an entry that means the working directory, whatever that is."""
    entries = [Path(one) for one in sys.path if isinstance(one, str) and one]
    try:
        return list(dict.fromkeys(str(one.absolute()) for one in entries))
    except FileNotFoundError:  # the working directory is gone, and what is relative to it
        return list(dict.fromkeys(str(one) for one in entries if one.is_absolute()))


def _path() -> str:
    try:
        here = str(Path.cwd())
    except FileNotFoundError:  # it is gone
        here = ""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)  # an empty entry means it too, by accident
    if any(one and Path(one).absolute() == Path(here) for one in named):
        here = ""
    home = str(Path(__file__).resolve().parents[2])  # regplug's own; its last place, if it has no other
    paths = [one for one in import_path() if one != here]
    return ascii((import_path() + ([] if home in paths else [home]), here))
