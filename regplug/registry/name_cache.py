"""Remembers which plugin offers which names, so that a bare name need not import every plugin to find its owner.

It is only a hint: the entry itself still comes from the plugin, and if the hint is missing or wrong, all plugins are
imported. It is one file, ``names-PATH-STATE.json``, in the cache folder: the two checksums are of where plugins were
looked for, and of what was found there and when that changed.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from regplug.registry.cache_folder import cache_folder, check_ours, read_regular
from regplug.registry.discovery import Found
from regplug.registry.entries import Entry

MAX_BYTES = 16 << 20  # of the file; a thousand plugins need under a hundredth of it
Offered = dict[str, dict[str, list[str]]]  # distribution, hook, names


class NameIndex:
    """What the plugins of one environment offered when all of them were last imported.

    Args:
        found: The distributions with entry points, just discovered.
    """

    def __init__(self, found: Mapping[str, Found]) -> None:
        self._found = dict(found)
        # before any import: if a file changes later, the next process imports all plugins again
        self._state, self._where = _state(found), repr((sys.prefix, sys.path))
        self._noted: dict[str, dict[str, list[str]] | None] = {}
        self._remembered: Offered | None = None
        self._was_read = self._was_kept = False

    def owners(self, hook: str, name: str) -> list[str] | None:
        """The distributions to import to find who offers this name; None if nothing is remembered.

        They are those that offered it, and those that are never remembered: their source may change at any time, or
        they are broken now and may be repaired.
        """
        known = self._recall()
        if known is None:
            return None
        return [one for one in self._found if one not in known or name in known[one].get(hook, ())]

    def note(self, distribution: str, entries: Mapping[str, tuple[Entry, ...]] | None) -> None:
        """Note what a distribution that was just imported offers; None if it is broken."""
        self._noted[distribution] = (
            None
            if entries is None
            else {hook: [entry.name for entry in some] for hook, some in entries.items() if some}
        )

    def keep(self) -> None:
        """Write what was noted, if it covers all distributions and has changed; an unwritable folder is no error."""
        if self._was_kept or self._noted.keys() != self._found.keys():
            return
        self._was_kept = True
        known = self._recall()
        names = {
            name: noted
            for name, found in self._found.items()
            # what is remembered was checked before; checking again would read two files of each
            if (noted := self._noted[name]) is not None and (name in (known or ()) or _stays_as_it_is(found))
        }
        if names != known:
            with suppress(OSError):
                self._write(self._path(), names)

    def _write(self, path: Path, names: Offered) -> None:
        import json

        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_ours(path.parent)
        temporary = path.parent / f".{os.urandom(8).hex()}.writing"
        try:
            temporary.write_text(json.dumps({"state": self._state, "names": names}), encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        for other in path.parent.glob(f"{path.name.rpartition('-')[0]}-*.json"):
            if other != path:
                other.unlink(missing_ok=True)

    def _recall(self) -> Offered | None:
        if not self._was_read:
            self._was_read, self._remembered = True, self._read()
        return self._remembered

    def _read(self) -> Offered | None:
        import json

        try:
            path = self._path()
            check_ours(path.parent)  # another user could write that a plugin offers nothing
            data = json.loads(read_regular(path, MAX_BYTES).decode())
            if data["state"] != self._state:
                return None
            return {
                str(distribution): {hook: [str(name) for name in names] for hook, names in hooks.items()}
                for distribution, hooks in data["names"].items()
            }
        except (OSError, RecursionError, ValueError, LookupError, TypeError, AttributeError):  # absent, or damaged
            return None

    def _path(self) -> Path:
        where, state = (zlib.crc32(text.encode()) for text in (self._where, self._state))
        return cache_folder() / f"names-{where:08x}-{state:08x}.json"


def _state(found: Mapping[str, Found]) -> str:
    """All that decides what an import gives: where modules are looked for, when that changed, and the entry points."""
    points = [(one.distribution, one.version, one.readouts, one.modules, one.newest) for one in found.values()]
    return repr((sys.version, [(folder, _changed(folder)) for folder in sys.path], points))


def _changed(folder: str) -> int:
    try:
        return os.stat(folder or os.curdir).st_mtime_ns  # noqa: PTH116  # an entry may be something else than a path
    except (OSError, ValueError):
        return 0


def _stays_as_it_is(found: Found) -> bool:
    """Whether it was installed as a copy: it changes only when an installer runs, not when a source file is saved."""
    import json

    try:
        if found.metadata is None or not found.metadata.read_text("METADATA"):
            return False
        origin = found.metadata.read_text("direct_url.json")
        return origin is None or not json.loads(origin).get("dir_info", {}).get("editable")
    except (OSError, ValueError, AttributeError):  # damaged: unknown
        return False
