"""The C++ compiler that the environment names."""

from __future__ import annotations

import os
import shlex
import shutil


def compiler_words() -> list[str] | None:
    """``$CXX`` as the words of a command, its program found on the path; ``c++`` without; None where there is none.

    ``CXX`` may name a compiler whose path has spaces, or be a command with words, as ``ccache g++`` and ``g++ -pipe``.
    """
    given = os.environ.get("CXX") or "c++"
    if (found := shutil.which(given)) is not None:
        return [found]
    try:
        program, *words = shlex.split(given)
    except ValueError:  # no word, or a quote that nothing ends
        return None
    found = shutil.which(program)
    return None if found is None else [found, *words]
