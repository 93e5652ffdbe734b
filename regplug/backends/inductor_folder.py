"""Where torch.compile keeps its libraries while regplug calls it: a folder that is private to this user.

torch's own folder, ``torchinductor_USER`` in the temporary folder, may have been made by another user beforehand:
libraries and pickles in it would run as the caller.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from regplug.backends.cache import INDUCTOR
from regplug.backends.compiler import compiler_words
from regplug.backends.inductor_private import inductor_settings
from regplug.backends.program_folder import program_folder, why_not
from regplug.backends.python_child import import_path
from regplug.errors import ExportError
from regplug.format.temporary import temporary_folder, unique_name
from regplug.registry.cache_folder import cache_folder, check_ours
from regplug.registry.fork_locks import lock_over_forks

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
CHILDREN_PATH = "TORCH_CUSTOM_PYTHONPATH"  # what Inductor passes to its processes as PYTHONPATH

log = logging.getLogger("regplug")


@dataclass
class _Use:
    """How many threads are inside; the first sets the environment of the process, and the last restores it."""

    threads: int = 0
    end: ExitStack = field(default_factory=ExitStack)


_lock = lock_over_forks()
_use = _Use()


@contextmanager
def private_inductor_folder() -> Iterator[None]:
    """Let ``torch.compile`` use a folder into which no other user may write.

    That is ``$TORCHINDUCTOR_CACHE_DIR``, or ``inductor`` in the cache, or a new folder that is deleted afterwards.

    Raises:
        ExportError: No folder can be made.
    """
    with _lock:
        if not _use.threads:
            _use.end.enter_context(_environment())
        _use.threads += 1
    try:
        with inductor_settings(_compiler(Path(os.environ[VARIABLE]))):
            yield
    finally:
        with _lock:
            _use.threads -= 1
            if not _use.threads:
                _use.end.close()


@contextmanager
def _environment() -> Iterator[None]:
    with ExitStack() as stack:
        folder = _permanent_folder(os.environ.get(VARIABLE)) or _folder_of_this_use(stack)
        ours = {VARIABLE: str(folder), CHILDREN_PATH: os.pathsep.join(import_path())}
        before = {name: os.environ.get(name) for name in ours}
        os.environ.update(ours)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _compiler(folder: Path) -> str | None:
    """A script that runs ``$CXX`` if that is a command of several words, which Inductor would take as one name."""
    words = compiler_words()
    if words is None or len(words) == 1:
        return None
    script = f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n'
    path = folder / f"c++-{hashlib.sha256(script.encode()).hexdigest()[:12]}"
    if not path.exists():
        written = unique_name(folder, ".c++-")
        written.write_text(script)
        written.chmod(0o700)
        written.replace(path)
    return str(path)


def _permanent_folder(own: str | None) -> Path | None:
    """The user's own folder, or the one in the cache; None if others may write into both."""
    # torch sets the variable itself when it is imported
    if own and not own.startswith(str(Path(tempfile.gettempdir(), "torchinductor_"))):
        try:
            return _private(Path(own))
        except OSError:
            pass
    try:
        _private(cache_folder())
        folder = _private(cache_folder() / INDUCTOR)
        os.utime(folder)  # the time of last use, for prune
    except PermissionError as error:
        log.warning("cache %s: not used by torch.compile: %s.", error.filename, error.strerror)
        return None
    except OSError:
        return None
    return folder


def _private(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_ours(folder)
    if reason := why_not(folder):
        raise OSError(None, reason)
    return folder


def _folder_of_this_use(stack: ExitStack) -> Path:
    parent = program_folder()
    if parent is None:
        given = Path(tempfile.gettempdir())
        raise ExportError(
            f"torch.compile: expected a folder for what it compiles, got {given}, {why_not(given)}; set TMPDIR."
        )
    try:
        return stack.enter_context(temporary_folder(parent, "regplug-inductor-"))
    except OSError as error:
        raise ExportError(
            f"torch.compile: expected a folder for what it compiles, got none ({error.strerror}); set TMPDIR."
        ) from error
