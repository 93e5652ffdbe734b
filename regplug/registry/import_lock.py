"""The registry's lock: held during a plugin's import, which may take long or never end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from regplug.errors import PluginError
from regplug.registry.fork_locks import lock_over_forks

IMPORT_LIMIT_S = 30.0  # how long another thread waits for the end of one plugin's import
POLL_S = 0.25  # how often it checks which import it waits for


class ImportLock:
    """A lock that one thread may take again, and that no other thread waits for endlessly while a plugin is imported.

    A plugin may start a thread at its import that uses the registry, and join it: it would wait for itself forever.
    """

    def __init__(self) -> None:
        self._lock = lock_over_forks()
        self._current: tuple[str, float] | None = None  # the plugin that is imported now, and since when

    def __enter__(self) -> None:
        """Take the lock.

        Raises:
            PluginError: Another thread holds it and has been importing one plugin for too long.
        """
        while not self._lock.acquire(timeout=min(POLL_S, IMPORT_LIMIT_S)):
            current = self._current
            if current is not None and time.monotonic() - current[1] >= IMPORT_LIMIT_S:
                raise PluginError(
                    f"plugin {current[0]!r}: expected an import that ends within {IMPORT_LIMIT_S:g} s, got one that "
                    "goes on in another thread; a plugin must not use the registry from another thread while it "
                    "is imported."
                )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self._lock.release()

    @contextmanager
    def importing(self, distribution: str) -> Iterator[None]:
        """Record which plugin is being imported; the lock is held. One import may cause another."""
        before = self._current
        self._current = (distribution, time.monotonic())
        try:
            yield
        finally:
            self._current = before
