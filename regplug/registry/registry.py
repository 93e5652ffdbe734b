"""The strategies, FiLM generators, backbones and export backends known now, found by name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from regplug.errors import NameLookupError, PluginError, closest
from regplug.registry.deprecation import warn_once
from regplug.registry.discovery import NO_METADATA, discover
from regplug.registry.distributions import normalise
from regplug.registry.entries import BackboneEntry, ExportBackendEntry, FiLMEntry, ReadoutEntry
from regplug.registry.name_cache import NameIndex
from regplug.registry.names import OWN, EntryT, display_names, pick, worker_hint
from regplug.registry.plugins import Plugins

if TYPE_CHECKING:
    from regplug.registry.spec import ReadoutSpec


class Registry(Plugins):
    """Finds what plugins offer, by name; a plugin is imported when something of it is needed, and not before.

    Args:
        found: The distributions to start from; ``discover()`` gives those that are installed.
        disabled: Distributions that are blocked before anything of theirs is imported.
        strict: Raise at the first broken plugin instead of recording it.
        index: What each plugin offered in an earlier process; None to import all plugins to know.
    """

    @classmethod
    def installed(cls) -> Registry:
        """A registry of what is installed, with the settings ``REGPLUG_DISABLE`` and ``REGPLUG_STRICT``."""
        disabled = [one for one in os.environ.get("REGPLUG_DISABLE", "").split(",") if one.strip()]
        found = discover()
        if os.environ.get("REGPLUG_STRICT", "") == "1":  # all plugins are imported then, for any lookup
            return cls(found, disabled, strict=True)
        return cls(found, disabled, index=NameIndex(found))

    def only(self, *distributions: str) -> Registry:
        """A registry of these plugins alone: no other one is imported for it or makes one of their names ambiguous."""
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

    def resolve(self, /, strategy: str, *, num_registers: int | None, hidden_dim: int, **options: Any) -> ReadoutSpec:
        """Check a choice and find its ``cond_dim``; nothing is allocated.

        Args:
            strategy: A name, ``pool`` or ``acme-readouts:attend``.
            num_registers: R; None for any number of tokens, where the strategy takes it.
            hidden_dim: D.
            **options: The strategy's own options.

        Raises:
            NameLookupError: The strategy is unknown or ambiguous.
            PluginError: Its plugin is broken.
            SpecError: A size or an option does not fit.
        """
        from regplug.registry.spec import specify

        return specify(self.readout_entry(strategy), num_registers, hidden_dim, options)

    # ---- the order of a lookup
    #
    # "DISTRIBUTION:NAME" is looked up in that distribution alone, which is imported. A bare name means the first of:
    #
    # 1. the built-in with this name; no other plugin is imported
    # 2. the entry of the plugin that alone offered it when all plugins were last imported (name_cache.py)
    # 3. the entry with this name of all plugins: regplug's own, else the only one (names.py, pick)
    # 4. the entry with this as an old name of all plugins, in the same way

    def _find(self, word: str, hook: str, wanted: type[EntryT], name: str) -> EntryT:
        if not isinstance(name, str):
            raise NameLookupError(f"{word}: expected a name, got {name!r}.")
        if self._strict:
            self._load_all()  # one broken plugin is an error of every lookup
        distribution, _, bare = name.rpartition(":")
        if distribution:
            entry = self._find_in(normalise(distribution), word, hook, wanted, bare)
        else:
            entry = self._find_bare(word, hook, wanted, name)
        if entry.name != bare:
            warn_once(f"{word} {name!r} is now named {entry.full_name!r}; use that.")
        return entry

    def _find_bare(self, word: str, hook: str, wanted: type[EntryT], name: str) -> EntryT:
        entry = (
            self._find_own(hook, wanted, name)
            or self._find_remembered(hook, wanted, name)
            or pick(word, name, self._all(hook, wanted))
        )
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
        """The built-in with this name; without the lock once it is loaded, as another plugin may be importing."""
        if OWN not in self._entries:
            with self._lock:
                self._load(OWN)
        offered = self._entries.get(OWN, {}).get(hook, ())
        return next((entry for entry in offered if isinstance(entry, wanted) and entry.name == name), None)

    def _find_remembered(self, hook: str, wanted: type[EntryT], name: str) -> EntryT | None:
        """The entry of the plugin that offered this name in an earlier process; None if that is not certain."""
        with self._lock:
            owners = self._index.owners(hook, name) if self._index else None
            if owners is None:
                return None
            for distribution in owners:
                self._load(distribution)
            offered = [entry for entry in self._loaded(hook, wanted) if entry.name == name]
        return offered[0] if len(offered) == 1 else None

    def _find_in(self, distribution: str, word: str, hook: str, wanted: type[EntryT], bare: str) -> EntryT:
        full = f"{distribution}:{bare}"
        if distribution == OWN and (own := self._find_own(hook, wanted, bare)):
            return own
        with self._lock:
            self._load(distribution)
            record = self._records.get(distribution)
            if record is None:
                raise NameLookupError(
                    f"{word} {full!r}: expected an installed plugin, got {distribution!r}"
                    f"{worker_hint()}{closest(distribution, self._known())}."
                )
            if record.status == "blocked":
                raise NameLookupError(f"{word} {full!r}: the plugin is blocked; see REGPLUG_DISABLE.")
            if record.error is not None:
                raise PluginError(f"{word} {full!r}: {record.error}") from record.error
            offered = [entry for entry in self._entries[distribution][hook] if isinstance(entry, wanted)]
        if entry := pick(word, bare, offered):
            return entry
        raise NameLookupError(f"{word} {full!r}: not registered{closest(bare, [entry.name for entry in offered])}.")
