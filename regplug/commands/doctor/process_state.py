"""Finds what an import changed in the state that a whole process shares; ``monkeypatches`` looks at regplug itself."""

from __future__ import annotations

import atexit
import locale
import os
import resource
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from regplug.commands.doctor.diagnostics import PROBLEM, WARNING, clip
from regplug.errors import shorten
from regplug.registry.process_guard import put_back_path

HOOKS = (
    (sys, "excepthook"),
    (sys, "unraisablehook"),
    (sys, "displayhook"),
    (sys, "breakpointhook"),
    (threading, "excepthook"),
)
STREAMS = ("stdin", "stdout", "stderr")
LIMITS = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
# environment variables that decide what child processes load
LOADER_PREFIXES = ("LD_", "DYLD_", "PYTHON")


@dataclass(frozen=True)
class Change:
    """One change of the process.

    Args:
        level: ``warning`` or ``problem``, if a light module does it.
        text: What was done, to follow "its import".
        is_ordinary: Whether large libraries do it at import too, so that it is not reported for heavy modules.
    """

    level: str
    text: str
    is_ordinary: bool = False


class ProcessState:
    """The process when this was made. It keeps the objects, because a freed object's address is used again."""

    def __init__(self) -> None:
        self.folder = _folder()
        self.umask = _umask()
        self.path = sys.path, list(sys.path)
        self.finders: tuple[list[Any], list[Any]] = list(sys.meta_path), list(sys.path_hooks)
        self.filters: list[Any] = list(warnings.filters)
        self.handlers = {one: signal.getsignal(one) for one in signal.valid_signals()}
        self.hooks = [getattr(owner, name, None) for owner, name in HOOKS]
        self.locale = locale.setlocale(locale.LC_ALL)
        self.streams = [getattr(sys, name, None) for name in STREAMS]
        self.closed = [getattr(stream, "closed", False) for stream in self.streams]
        self.descriptors = [_identity(number) for number in range(3)]
        self.threads = threading.enumerate()
        self.variables = dict(os.environ)
        self.recursion = sys.getrecursionlimit()
        self.timeout = socket.getdefaulttimeout()
        self.limits = {name: resource.getrlimit(which) for name, which in LIMITS.items()}

    def changes(self) -> Iterator[Change]:
        """What has changed since."""
        now = ProcessState()
        if now.folder != self.folder:
            yield Change(PROBLEM, f"changes the working folder to {now.folder!r}")
        if now.umask != self.umask:
            yield Change(PROBLEM, f"changes the umask from {self.umask:03o} to {now.umask:03o}")
        yield from self._path_changes(now)
        for name, finders, found in (
            ("sys.meta_path", self.finders[0], now.finders[0]),
            ("sys.path_hooks", self.finders[1], now.finders[1]),
        ):
            if not _contains(found, finders):
                yield Change(PROBLEM, f"takes something out of {name}")
            elif len(found) > len(finders):
                yield Change(WARNING, f"puts something into {name}", is_ordinary=True)
        yield from self._filter_changes(now)
        changed = [signal.Signals(one).name for one, old in self.handlers.items() if now.handlers[one] != old]
        if changed:
            yield Change(PROBLEM, f"handles or ignores the signals {shorten(changed)}")
        for (owner, name), old, new in zip(HOOKS, self.hooks, now.hooks, strict=True):
            if new is not old:
                yield Change(PROBLEM, f"replaces {owner.__name__}.{name}")
        if now.locale != self.locale:
            yield Change(PROBLEM, f"changes the locale to {now.locale!r}")
        for number, name in enumerate(STREAMS):
            if now.streams[number] is not self.streams[number] or now.closed[number] != self.closed[number]:
                yield Change(PROBLEM, f"replaces or closes sys.{name}")
            elif now.descriptors[number] != self.descriptors[number]:
                yield Change(PROBLEM, f"replaces or closes descriptor {number}")
        for thread in now.threads:
            if not _contains(self.threads, [thread]):
                level = WARNING if thread.daemon else PROBLEM  # a host cannot exit before one that is no daemon
                yield Change(level, f"leaves the thread {thread.name!r} running", is_ordinary=thread.daemon)
        yield from self._variable_changes(now)
        if now.recursion != self.recursion:
            text = f"changes the recursion limit from {self.recursion} to {now.recursion}"
            yield Change(PROBLEM if now.recursion < self.recursion else WARNING, text, now.recursion > self.recursion)
        if now.timeout != self.timeout:
            yield Change(PROBLEM, f"changes the default timeout of sockets to {now.timeout}")
        lowered = [name for name, old in self.limits.items() if _is_lower(now.limits[name], old)]
        if lowered:
            yield Change(PROBLEM, f"lowers the limits {shorten(lowered)}")

    def restore(self) -> None:
        """Restore what the child needs to report its results and to go on."""
        for name, limits in self.limits.items():
            with suppress(OSError, ValueError):
                if resource.getrlimit(LIMITS[name]) != limits:
                    resource.setrlimit(LIMITS[name], limits)
        put_back_path(self.path[1])
        sys.meta_path += [one for one in self.finders[0] if not _contains(sys.meta_path, [one])]
        sys.path_hooks += [one for one in self.finders[1] if not _contains(sys.path_hooks, [one])]
        warnings.filters[:] = self.filters  # type: ignore[index]
        sys.setrecursionlimit(self.recursion)

    def _path_changes(self, now: ProcessState) -> Iterator[Change]:
        (old_list, old), (new_list, new) = self.path, now.path
        if new_list is not old_list or not _contains(new, old):
            yield Change(PROBLEM, "takes entries out of sys.path, or replaces it")
        elif new[: len(old)] != old:
            first = next(one for one, before in zip(new, [*old, None], strict=False) if one is not before)
            yield Change(WARNING, f"puts {first!r} before others in sys.path", is_ordinary=True)

    def _filter_changes(self, now: ProcessState) -> Iterator[Change]:
        added = [one for one in now.filters if one not in self.filters]
        errors = [one for one in added if one[0] == "error"]
        if errors:
            yield Change(PROBLEM, "makes warnings errors")
        elif added:
            yield Change(WARNING, f"adds {len(added)} filters of warnings", is_ordinary=True)

    def _variable_changes(self, now: ProcessState) -> Iterator[Change]:
        names = {*self.variables, *now.variables}
        changed = sorted(one for one in names if now.variables.get(one) != self.variables.get(one))
        loading = [one for one in changed if one.startswith(LOADER_PREFIXES) or one == "PATH"]
        if loading:
            yield Change(PROBLEM, f"changes the environment variables {shorten(loading)}")
        if others := [one for one in changed if one not in loading]:
            yield Change(WARNING, f"changes the environment variables {shorten(others)}", is_ordinary=True)


class ExitHooks:
    """Notes which exit hooks a plugin's own modules register, because Python cannot list them."""

    def __init__(self, roots: Collection[str]) -> None:
        self._roots, self._register = roots, atexit.register
        self.found: list[Change] = []
        atexit.register = self._note  # type: ignore[assignment]

    def stop(self) -> None:
        """Stop noting."""
        atexit.register = self._register

    def _note(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[..., Any]:
        caller = str(sys._getframe(1).f_globals.get("__name__")).partition(".")[0]
        ends = function in (os._exit, os.abort, os.kill, sys.exit)
        if ends or caller in self._roots:
            name = clip(str(getattr(function, "__qualname__", "without a name")), 60)
            text = f"registers the exit hook {name}, which may keep a program from ending, or change its exit code"
            self.found.append(Change(PROBLEM if ends else WARNING, text, is_ordinary=not ends))
        return self._register(function, *arguments, **options)


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109  # as text, unchanged
    except OSError:
        return None


def _umask() -> int:
    now = os.umask(0o077)
    os.umask(now)
    return now


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _contains(now: Collection[Any], before: Collection[Any]) -> bool:
    """Whether all objects are still there, by identity: objects may define any equality."""
    known = {id(one) for one in now}
    return all(id(one) in known for one in before)


def _is_lower(now: tuple[int, int], before: tuple[int, int]) -> bool:
    infinite = resource.RLIM_INFINITY
    return any(new != infinite and (old == infinite or new < old) for new, old in zip(now, before, strict=True))
