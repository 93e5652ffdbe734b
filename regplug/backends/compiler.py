"""A C++ compiler, as the environment or the user names it."""

from __future__ import annotations

import os
import shlex
import shutil


def compiler_words(named: str | None = None) -> list[str] | None:
    """A compiler as the words of a command, with the program's full path; None if it is not there.

    Args:
        named: The command; None for ``$CXX``, or ``c++`` if that is unset.

    It may be a path with spaces, or a command of several words, as ``ccache g++`` and ``g++ -pipe``.
    """
    given = named or os.environ.get("CXX") or "c++"
    if (found := shutil.which(given)) is not None:
        return [found]
    try:
        program, *words = shlex.split(given)
    except ValueError:  # no word, or an open quote
        return None
    found = shutil.which(program)
    return None if found is None else [found, *words]
