"""The plugins known now: each is imported when something of it is needed, and what it offers is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from regplug.errors import NameLookupError, PluginError, closest
from regplug.registry.discovery import Found
from regplug.registry.distributions import normalise
from regplug.registry.entries import NAME_PATTERN, Entry, Provenance
from regplug.registry.import_lock import ImportLock
from regplug.registry.name_cache import NameIndex
from regplug.registry.names import OWN, EntryT, is_own, refuse_own
from regplug.registry.process_guard import guard_process
from regplug.registry.references import import_plugin
from regplug.registry.staging import PluginRecord, stage


class Plugins:
    """Imports plugins as transactions: all that a plugin offers is kept, or nothing.

    Args:
        found: The distributions to start from; ``discover()`` gives those that are installed.
        disabled: Distributions that are blocked before anything of theirs is imported.
        strict: Raise at the first broken plugin instead of recording it.
        index: What each plugin offered in an earlier process; None to import all plugins to know.
    """

    def __init__(
        self,
        found: Mapping[str, Found],
        disabled: Iterable[str] = (),
        strict: bool = False,
        index: NameIndex | None = None,
    ) -> None:
        self._entries: dict[str, Mapping[str, tuple[Entry, ...]]] = {}  # of each distribution, by hook
        self._index = index
        self._pending = dict(found)  # not imported yet
        self._records: dict[str, PluginRecord] = {}
        self._claims: dict[str, list[str]] = {}  # names that a broken plugin would have offered
        self._strict = strict
        self._lock = ImportLock()
        for distribution in disabled:
            self.block(distribution)

    def register(self, plugin: object, distribution: str, version: str = "unknown") -> None:
        """Add a plugin object (a module or an instance with hookimpls) of the running program.

        Raises:
            PluginError: The name is taken, or the plugin is broken; nothing of it is kept then.
        """
        name = normalise(distribution)
        if not NAME_PATTERN.fullmatch(name):  # a bundle stores it as a part of the strategy's name
            raise PluginError(f"plugin {distribution!r}: expected letters, digits, '.', '_' and '-' in its name.")
        with self._lock:
            if name in self._pending or name in self._records:
                raise PluginError(f"plugin {name!r}: expected a new distribution name, got one already known.")
            with self._lock.importing(name), guard_process():
                entries = stage(Provenance(name, version), (), [plugin])
            self._keep(name, entries, version)

    def unregister(self, distribution: str) -> None:
        """Forget a distribution and all that it brought.

        Raises:
            NameLookupError: No such plugin is known.
            PluginError: It is regplug itself.
        """
        name = normalise(distribution)
        refuse_own(name)
        with self._lock:
            if self._pending.pop(name, None) is None and self._records.pop(name, None) is None:
                raise NameLookupError(f"plugin {name!r}: not known{closest(name, self._known())}.")
            self._claims.pop(name, None)
            self._entries.pop(name, None)

    def block(self, distribution: str) -> None:
        """Never import this distribution's plugin; forget it if it was imported.

        Raises:
            PluginError: It is regplug itself.
        """
        name = normalise(distribution.strip())
        refuse_own(name)
        with self._lock:
            found = self._pending.pop(name, None)
            version = found.version if found else getattr(self._records.get(name), "version", "unknown")
            self._records[name] = PluginRecord(name, version, "blocked")
            self._claims.pop(name, None)
            self._entries.pop(name, None)

    def plugins(self) -> list[PluginRecord]:
        """Every plugin and what became of it, sorted by distribution."""
        with self._lock:
            self._load_all()
            return [self._records[name] for name in sorted(self._records)]

    def _known(self) -> list[str]:
        return sorted({*self._pending, *self._records})

    def _all(self, hook: str, wanted: type[EntryT]) -> list[EntryT]:
        """What all plugins offer for a hook; regplug's own first, then by full name."""
        self._load_all()
        with self._lock:
            entries = self._loaded(hook, wanted)
        return sorted(entries, key=lambda entry: (not is_own(entry), entry.full_name))

    def _loaded(self, hook: str, wanted: type[EntryT]) -> list[EntryT]:
        return [entry for each in self._entries.values() for entry in each[hook] if isinstance(entry, wanted)]

    def _load_all(self) -> None:
        with self._lock:
            for distribution in list(self._pending):
                self._load(distribution)
            if self._index:
                self._index.keep()

    def _load(self, distribution: str) -> None:
        """Import one distribution's plugin as a transaction: all of it is kept, or nothing."""
        if OWN in self._pending and distribution != OWN:  # a plugin may need the built-ins while it is imported
            self._load(OWN)
        found = self._pending.pop(distribution, None)  # first: a plugin may use the registry while it is imported
        if found is None:
            return
        version = found.version
        try:
            if not found.speaks_our_protocol:
                raise PluginError(f"plugin {distribution!r}: {found.refusal}")
            with self._lock.importing(distribution), guard_process():
                modules = [import_plugin(distribution, reference) for reference in found.modules]
                entries = stage(Provenance(distribution, version), found.readouts, modules)
        except PluginError as error:
            if self._strict:
                self._pending[distribution] = found  # so that the next caller gets the error too
                raise
            self._records[distribution] = PluginRecord(distribution, version, "broken", error, tuple(found.notes))
            self._claims[distribution] = [name for name, _ in found.readouts]
        except BaseException:  # an interrupt says nothing about the plugin
            self._pending[distribution] = found
            raise
        else:
            self._keep(distribution, entries, version, found.notes)
        if self._index:
            self._index.note(distribution, self._entries.get(distribution))  # None of a broken one

    def _keep(
        self, name: str, entries: Mapping[str, tuple[Entry, ...]], version: str, notes: Iterable[str] = ()
    ) -> None:
        self._entries[name] = entries
        self._records[name] = PluginRecord(name, version, "ok", notes=tuple(notes))
