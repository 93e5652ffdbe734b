"""Where torch.compile keeps its libraries while regplug calls it: a folder of this user's alone.

torch's own place, ``torchinductor_USER`` in the temporary folder, may be another user's, who made it beforehand: the
libraries and pickles that are in it would run as the caller.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from regplug.cache import INDUCTOR
from regplug.cache_place import cache_folder, check_ours
from regplug.errors import ExportError
from regplug.forking import lock_over_forks
from regplug.temporary import temporary_folder
from regplug.torch_private import no_precompiled_headers

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


@dataclass
class _Use:
    """How many threads are inside; the first sets the environment, which is one for all, and the last restores it."""

    threads: int = 0
    end: ExitStack = field(default_factory=ExitStack)


_lock = lock_over_forks()
_use = _Use()


@contextmanager
def private_inductor_folder() -> Iterator[None]:
    """Inside it ``torch.compile`` reads and writes in a folder into which nobody else may write.

    That is ``$TORCHINDUCTOR_CACHE_DIR``, or ``inductor`` in the cache, or a new folder that is deleted afterwards.

    Raises:
        ExportError: There is no place for a folder.
    """
    with _lock:
        if not _use.threads:
            _use.end.enter_context(_environment())
        _use.threads += 1
    try:
        with no_precompiled_headers():
            yield
    finally:
        with _lock:
            _use.threads -= 1
            if not _use.threads:
                _use.end.close()


@contextmanager
def _environment() -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    with ExitStack() as stack:
        os.environ[VARIABLE] = str(_kept_folder(before) or _new_folder(stack))
        try:
            yield
        finally:
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before


def _kept_folder(own: str | None) -> Path | None:
    """The user's own folder, or the one in the cache; None where others may write into both."""
    # torch sets the variable itself as it is imported
    if own and not own.startswith(str(Path(tempfile.gettempdir(), "torchinductor_"))):
        try:
            return _made(Path(own))
        except OSError:
            pass
    try:
        _made(cache_folder())
        folder = _made(cache_folder() / INDUCTOR)
        os.utime(folder)  # when it was last of use, for prune
    except OSError:
        return None
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_ours(folder)
    return folder


def _new_folder(stack: ExitStack) -> Path:
    try:
        return stack.enter_context(temporary_folder(Path(tempfile.gettempdir()), "regplug-inductor-"))
    except OSError as error:
        raise ExportError(
            f"torch.compile: expected a folder for what it compiles, got none ({error.strerror}); set TMPDIR."
        ) from error
