"""Which entry a bare name means, and how entries are named in a list."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

from regplug.errors import NameLookupError, PluginError
from regplug.registry.entries import Entry

OWN = "regplug"
EntryT = TypeVar("EntryT", bound=Entry)


def is_own(entry: Entry) -> bool:
    """Whether it is regplug's own entry: its name is reserved."""
    return entry.provenance is not None and entry.provenance.distribution == OWN


def refuse_own(distribution: str) -> None:
    """Raise a PluginError for regplug's own distribution: a built-in name always means the built-in."""
    if distribution == OWN:
        raise PluginError(
            f"plugin {OWN!r}: expected another plugin than regplug's own, which cannot be blocked or forgotten; "
            "a built-in name always means the built-in."
        )


def pick(word: str, name: str, entries: Sequence[EntryT]) -> EntryT | None:
    """The entry that a bare name means: by current names, else by old ones; regplug's own, else the only one.

    Raises:
        NameLookupError: Two distributions offer it.
    """
    for owners in ([e for e in entries if e.name == name], [e for e in entries if name in e.old_names]):
        own = [entry for entry in owners if is_own(entry)]
        if own or len(owners) == 1:
            return (own or owners)[0]
        if owners:
            names = [entry.full_name for entry in owners]
            offering = _list([full.partition(":")[0] for full in names], "and")
            raise NameLookupError(f"{word} {name!r}: offered by {offering}; use {_list(map(repr, names), 'or')}.")
    return None


def display_names(entries: Iterable[Entry]) -> list[str]:
    """The names to type: bare where one distribution owns it, else ``distribution:name``."""
    entries = list(entries)
    owners = Counter(entry.name for entry in entries)
    return [entry.name if owners[entry.name] == 1 or is_own(entry) else entry.full_name for entry in entries]


def worker_hint() -> str:
    """The end of a message about an unknown name in a worker process; empty in any other process."""
    processes = sys.modules.get("multiprocessing")  # a worker of it has imported it
    if "TORCHELASTIC_RUN_ID" not in os.environ and (processes is None or processes.parent_process() is None):
        return ""
    return (
        "; what the parent registered in memory is not known to a worker process: register it here too, or install it"
    )


def _list(names: Iterable[str], last: str) -> str:
    *front, end = names
    return f"{', '.join(front)} {last} {end}" if front else end
