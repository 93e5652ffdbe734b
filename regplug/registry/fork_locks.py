"""Locks that are free in a forked child, because a fork waits for them."""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref

FORK_LIMIT_S = 60.0  # a plugin may fork in a thread that its own import waits for: the lock is not released then
_locks: set[weakref.ref[threading.RLock]] = set()
_held: list[threading.RLock] = []  # over a fork


def lock_over_forks() -> threading.RLock:
    """A lock that a fork waits for: in a child forked while another thread holds it, it would never be released."""
    lock = threading.RLock()
    _locks.add(weakref.ref(lock, _locks.discard))
    return lock


def _take_all() -> None:
    locks = [lock for reference in tuple(_locks) if (lock := reference())]
    end = time.monotonic() + FORK_LIMIT_S
    # an import holds one and may need another, so no order is safe: take all at once, or none
    while not all(taken := [lock.acquire(timeout=0.05) for lock in locks]):
        if time.monotonic() > end:
            break
        for lock in itertools.compress(locks, taken):
            lock.release()
    _held[:] = itertools.compress(locks, taken)


def _release_all() -> None:
    for lock in [_held.pop() for _ in range(len(_held))]:  # emptied before another thread may fork
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take_all, after_in_parent=_release_all, after_in_child=_release_all)
