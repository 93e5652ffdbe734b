"""A digest of the code that a strategy or a generator is, so that scores of another version of it are not taken."""

from __future__ import annotations

import inspect
from functools import cache
from hashlib import sha256
from pathlib import Path

from regplug.registry.references import Reference, load_reference


def code_of(owner: str, reference: Reference) -> str | None:
    """A digest of the file that holds a class or function; None if its code is not that of a file.

    A class that is made inside a function may differ from another one of the same lines. What the file imports is not
    looked at: a package's version stands for that.

    Args:
        owner: Whose it is, for messages.
        reference: The class or function, or where it is.
    """
    found = inspect.unwrap(load_reference(owner, reference))
    if "<" in getattr(found, "__qualname__", "<"):
        return None
    try:
        file = inspect.getsourcefile(found)
    except TypeError:  # built in
        return None
    return None if file is None else _digest_of(file)


@cache
def _digest_of(file: str) -> str | None:
    try:
        return sha256(Path(file).read_bytes()).hexdigest()
    except OSError:  # the lines of an interpreter
        return None
