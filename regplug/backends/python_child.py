"""Commands that run Python with the import path of this process, without the working directory.

``python -m`` and ``python -c`` put the working directory first; ``-P``, which prevents that, needs Python 3.11.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Only `sys`, which is built in, is imported before the path is set. The entries of this process come first; those that
# the interpreter found (site, PYTHONPATH) stay, even the working directory.
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
    """``sys.path`` as absolute paths, without empty entries, which mean the working directory."""
    entries = [Path(one) for one in sys.path if isinstance(one, str) and one]
    try:
        return list(dict.fromkeys(str(one.absolute()) for one in entries))
    except FileNotFoundError:  # the working directory is deleted, and with it all relative entries
        return list(dict.fromkeys(str(one) for one in entries if one.is_absolute()))


def _path() -> str:
    try:
        here = str(Path.cwd())
    except FileNotFoundError:  # it is deleted
        here = ""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)  # an empty entry is an accident
    if any(one and Path(one).absolute() == Path(here) for one in named):
        here = ""
    home = str(Path(__file__).resolve().parents[2])  # where regplug is, which comes last if it is not on the path
    paths = [one for one in import_path() if one != here]
    return ascii((import_path() + ([] if home in paths else [home]), here))
