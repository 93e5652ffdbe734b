"""The strategies and backbones known now, and who brought them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from regplug.errors import NameLookupError, PluginError, closest
from regplug.registry.deprecation import warn_once
from regplug.registry.discovery import NO_METADATA, Found, discover
from regplug.registry.distributions import normalise
from regplug.registry.entries import (
    NAME_PATTERN,
    BackboneEntry,
    Entry,
    ExportBackendEntry,
    FiLMEntry,
    Provenance,
    ReadoutEntry,
)
from regplug.registry.import_lock import ImportLock
from regplug.registry.kept_host import kept_host
from regplug.registry.name_cache import NameIndex
from regplug.registry.names import OWN, EntryT, display_names, is_own, pick, refuse_own, worker_hint
from regplug.registry.references import import_plugin
from regplug.registry.staging import PluginRecord, stage

if TYPE_CHECKING:
    from regplug.registry.spec import ReadoutSpec


class Registry:
    """Knows the installed plugins; imports one only when something of it is asked for.

    Args:
        found: The distributions to start from; ``discover()`` gives those that are installed.
        disabled: Distributions that are blocked before anything of theirs is imported.
        strict: Raise at the first broken plugin instead of recording it.
        index: Tells from an earlier process who offers a name; None to import all plugins to know.
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
        self._pending = dict(found)
        self._records: dict[str, PluginRecord] = {}
        self._claims: dict[str, list[str]] = {}  # names that a broken plugin would have offered
        self._strict = strict
        self._lock = ImportLock()
        for distribution in disabled:
            self.block(distribution)

    @classmethod
    def installed(cls) -> Registry:
        """A registry of what is installed, as ``REGPLUG_DISABLE`` and ``REGPLUG_STRICT`` ask."""
        disabled = [one for one in os.environ.get("REGPLUG_DISABLE", "").split(",") if one.strip()]
        found = discover()
        if os.environ.get("REGPLUG_STRICT", "") == "1":  # all plugins are imported then, whatever is asked for
            return cls(found, disabled, strict=True)
        return cls(found, disabled, index=NameIndex(found))

    # ---- plugins

    def register(self, plugin: object, distribution: str, version: str = "unknown") -> None:
        """Add a plugin object (a module or an instance with hookimpls) of the running program.

        Raises:
            PluginError: The name is taken, or the plugin is broken; nothing of it is kept then.
        """
        name = normalise(distribution)
        if not NAME_PATTERN.fullmatch(name):  # a bundle writes it down as a part of the strategy's name
            raise PluginError(f"plugin {distribution!r}: expected letters, digits, '.', '_' and '-' in its name.")
        with self._lock:
            if name in self._pending or name in self._records:
                raise PluginError(f"plugin {name!r}: expected a new distribution name, got one already known.")
            with self._lock.importing(name), kept_host():
                entries = stage(Provenance(name, version), (), [plugin])
            self._commit(name, entries, version)

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
                known = sorted({*self._pending, *self._records})
                raise NameLookupError(f"plugin {name!r}: not known{closest(name, known)}.")
            self._claims.pop(name, None)
            self._entries.pop(name, None)

    def block(self, distribution: str) -> None:
        """Never import this distribution's plugin; forget it if it was.

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

    def only(self, *distributions: str) -> Registry:
        """A registry of these plugins alone: no other one is imported for it, or makes a name of theirs ambiguous."""
        made = Registry({})
        with self._lock:
            for name in distributions:
                self._load(name)
                if name in self._entries:
                    made._entries[name], made._records[name] = self._entries[name], self._records[name]
        return made

    # ---- entries

    def readout_entries(self) -> list[ReadoutEntry]:
        """Every strategy of every plugin; regplug's own first, then by full name."""
        return self._all("regplug_readouts", ReadoutEntry)

    def film_entries(self) -> list[FiLMEntry]:
        """Every family of FiLM generators."""
        return self._all("regplug_films", FiLMEntry)

    def backbone_entries(self) -> list[BackboneEntry]:
        """Every backbone."""
        return self._all("regplug_backbones", BackboneEntry)

    def export_backend_entries(self) -> list[ExportBackendEntry]:
        """Every export backend."""
        return self._all("regplug_export_backends", ExportBackendEntry)

    def strategies(self) -> list[str]:
        """The names to type: bare where one distribution owns it, else ``distribution:name``."""
        return display_names(self.readout_entries())

    def backbones(self) -> list[str]:
        """The backbones' names: bare where one distribution owns it, else ``distribution:name``."""
        return display_names(self.backbone_entries())

    def film_generators(self) -> list[str]:
        """The FiLM generators' names: bare where one distribution owns it, else ``distribution:name``."""
        return display_names(self.film_entries())

    def readout_entry(self, strategy: str) -> ReadoutEntry:
        """The entry of a strategy.

        Raises:
            NameLookupError: The name is unknown, or two distributions offer it.
            PluginError: The plugin that offers it is broken.
        """
        return self._find("strategy", "regplug_readouts", ReadoutEntry, strategy)

    def film_entry(self, name: str) -> FiLMEntry:
        """The entry of a family of FiLM generators; raises as ``readout_entry`` does."""
        return self._find("FiLM generator", "regplug_films", FiLMEntry, name)

    def backbone_entry(self, name: str) -> BackboneEntry:
        """The entry of a backbone; raises as ``readout_entry`` does."""
        return self._find("backbone", "regplug_backbones", BackboneEntry, name)

    def export_backend_entry(self, name: str) -> ExportBackendEntry:
        """The entry of an export backend; raises as ``readout_entry`` does."""
        return self._find("export backend", "regplug_export_backends", ExportBackendEntry, name)

    def resolve(self, /, strategy: str, *, num_registers: int, hidden_dim: int, **options: Any) -> ReadoutSpec:
        """Check a choice and find its ``cond_dim``; nothing is allocated.

        Args:
            strategy: A name, ``pool`` or ``acme-readouts:attend``.
            num_registers: R.
            hidden_dim: D.
            **options: The strategy's own options.

        Raises:
            NameLookupError: The strategy is unknown or ambiguous.
            PluginError: Its plugin is broken.
            SpecError: A size or an option does not fit.
        """
        from regplug.registry.spec import specify

        return specify(self.readout_entry(strategy), num_registers, hidden_dim, options)

    # ---- inside

    def _find(self, word: str, hook: str, wanted: type[EntryT], name: str) -> EntryT:
        if not isinstance(name, str):
            raise NameLookupError(f"{word}: expected a name, got {name!r}.")
        if self._strict:
            self._load_all()  # one broken plugin is fatal, whatever is asked for
        distribution, _, bare = name.rpartition(":")
        if distribution:
            entry = self._find_owned(word, hook, wanted, normalise(distribution), bare)
        else:
            entry = self._find_bare(word, hook, wanted, name)
        if entry.name != bare:
            warn_once(f"{word} {name!r} is now named {entry.full_name!r}; use that.")
        return entry

    def _find_bare(self, word: str, hook: str, wanted: type[EntryT], name: str) -> EntryT:
        own = self._find_own(hook, wanted, name)
        if own is not None:  # a bare built-in name means the built-in, whoever else uses it, and imports nobody else
            return own
        entry = self._find_remembered(hook, wanted, name) or pick(word, name, self._all(hook, wanted))
        if entry is not None:
            return entry
        for record in self.plugins() if wanted is ReadoutEntry else ():  # only strategies are claimed without an import
            if record.error is not None and name in self._claims.get(record.distribution, ()):
                raise PluginError(f"{word} {name!r}: {record.error}") from record.error
        broken = [record.distribution for record in self.plugins() if record.status == "broken"]
        hint = f"; broken plugins: {', '.join(broken)}" if broken else ""
        if OWN in self._records and NO_METADATA in self._records[OWN].notes:
            hint += f"; {NO_METADATA}"
        known = closest(name, display_names(self._all(hook, wanted)))
        raise NameLookupError(f"{word} {name!r}: not registered{worker_hint()}{known}{hint}.")

    def _find_own(self, hook: str, wanted: type[EntryT], name: str) -> EntryT | None:
        """The built-in of this name; without the lock once it is loaded, for another plugin may be importing."""
        if OWN not in self._entries:
            with self._lock:
                self._load(OWN)
        offered = self._entries.get(OWN, {}).get(hook, ())
        return next((entry for entry in offered if isinstance(entry, wanted) and entry.name == name), None)

    def _find_remembered(self, hook: str, wanted: type[EntryT], name: str) -> EntryT | None:
        """What the plugin gives that offered this name in an earlier process; None if that does not settle it."""
        with self._lock:
            owners = self._index.owners(hook, name) if self._index else None
            if owners is None:
                return None
            for distribution in owners:
                self._load(distribution)
            offered = [entry for entry in self._loaded(hook, wanted) if entry.name == name]
        return offered[0] if len(offered) == 1 else None

    def _find_owned(self, word: str, hook: str, wanted: type[EntryT], distribution: str, bare: str) -> EntryT:
        full = f"{distribution}:{bare}"
        if distribution == OWN and (own := self._find_own(hook, wanted, bare)):
            return own
        with self._lock:
            self._load(distribution)
            record = self._records.get(distribution)
            if record is None:
                known = sorted({*self._pending, *self._records})
                raise NameLookupError(
                    f"{word} {full!r}: expected an installed plugin, got {distribution!r}"
                    f"{worker_hint()}{closest(distribution, known)}."
                )
            if record.status == "blocked":
                raise NameLookupError(f"{word} {full!r}: the plugin is blocked; see REGPLUG_DISABLE.")
            if record.error is not None:
                raise PluginError(f"{word} {full!r}: {record.error}") from record.error
            offered = [entry for entry in self._entries[distribution][hook] if isinstance(entry, wanted)]
        if entry := pick(word, bare, offered):
            return entry
        raise NameLookupError(f"{word} {full!r}: not registered{closest(bare, [entry.name for entry in offered])}.")

    def _all(self, hook: str, wanted: type[EntryT]) -> list[EntryT]:
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
        """Import one distribution's plugin as a transaction: all of it is registered, or nothing."""
        if OWN in self._pending and distribution != OWN:  # a plugin may ask for it while it is imported
            self._load(OWN)
        found = self._pending.pop(distribution, None)  # first: a plugin may ask the registry while it is imported
        if found is None:
            return
        version = found.version
        try:
            if not found.speaks_our_protocol:
                raise PluginError(f"plugin {distribution!r}: {found.refusal}")
            with self._lock.importing(distribution), kept_host():
                modules = [import_plugin(distribution, reference) for reference in found.modules]
                entries = stage(Provenance(distribution, version), found.readouts, modules)
        except PluginError as error:
            if self._strict:
                self._pending[distribution] = found  # so that it is fatal to whoever asks next, too
                raise
            self._records[distribution] = PluginRecord(distribution, version, "broken", error, tuple(found.notes))
            self._claims[distribution] = [name for name, _ in found.readouts]
        except BaseException:  # an interrupt says nothing of the plugin
            self._pending[distribution] = found
            raise
        else:
            self._commit(distribution, entries, version, found.notes)
        if self._index:
            self._index.note(distribution, self._entries.get(distribution))  # None of a broken one

    def _commit(
        self, name: str, entries: Mapping[str, tuple[Entry, ...]], version: str, notes: Iterable[str] = ()
    ) -> None:
        self._entries[name] = entries
        self._records[name] = PluginRecord(name, version, "ok", notes=tuple(notes))
