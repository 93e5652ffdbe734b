"""The C++ compiler that the environment names."""

from __future__ import annotations

import os
import shlex
import shutil


def compiler_words() -> list[str] | None:
    """``$CXX`` as the words of a command, with the program's full path; ``c++`` if unset; None if there is none.

    ``CXX`` may be a path with spaces, or a command of several words, as ``ccache g++`` and ``g++ -pipe``.
    """
    given = os.environ.get("CXX") or "c++"
    if (found := shutil.which(given)) is not None:
        return [found]
    try:
        program, *words = shlex.split(given)
    except ValueError:  # no word, or an open quote
        return None
    found = shutil.which(program)
    return None if found is None else [found, *words]
