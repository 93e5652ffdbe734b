"""Finds the installed distributions that have entry points of regplug, and imports nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint

from regplug.registry.distributions import UNKNOWN, Installed, installed
from regplug.registry.names import OWN
from regplug.registry.version import own_version

PROTOCOL = 1
READOUT_GROUP = f"regplug_readouts_v{PROTOCOL}"
PLUGIN_GROUP = f"regplug_v{PROTOCOL}"
ANY_GROUP = re.compile(r"regplug(?:_readouts)?_v(\d+)")
BUILTIN = "regplug.registry.builtin"
ENTRY_POINTS = "entry_points.txt"
NO_METADATA = (
    "regplug runs without its own metadata, as in a frozen application; plugins are found by theirs: copy their "
    "dist-info folders along (PyInstaller: --copy-metadata NAME)"
)
HEADER = re.compile(r"\[\s*(.*?)\s*\]")


@dataclass
class Found:
    """The entry points of one distribution.

    Args:
        distribution: Its normalised name.
        metadata: Its metadata; None if it is not installed.
        readouts: Names and references of the group ``regplug_readouts_v1``.
        modules: References of the group ``regplug_v1``.
        newest: The newest protocol of its entry points, if none is of protocol 1.
        version: ``unknown`` if its metadata has none.
        notes: Problems of its metadata, one line each: a line or another copy may have no effect.
    """

    distribution: str
    metadata: Distribution | None
    readouts: list[tuple[str, str]] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    newest: int = 0
    version: str = UNKNOWN
    notes: list[str] = field(default_factory=list)

    @property
    def speaks_our_protocol(self) -> bool:
        """Whether it has an entry point of protocol 1; it may have newer ones too."""
        return bool(self.readouts or self.modules)

    @property
    def refusal(self) -> str:
        """Why a plugin without an entry point of protocol 1 cannot be used."""
        if self.newest:
            return f"expected protocol {PROTOCOL}, got {self.newest}; update regplug."
        return f"{self.notes[0]}."


def discover() -> dict[str, Found]:
    """Every distribution with an entry point of regplug, sorted by name: the order of directories must not matter.

    regplug's own plugin is always among them, also in a frozen application, which has no metadata.
    """
    found: dict[str, Found] = {}
    for one in installed():
        text = one.text(ENTRY_POINTS)
        if text is None or "regplug" not in text or one.name is None:
            continue
        plugin = Found(one.name, one.distribution, version=one.version)
        for group, line in lines_of(text):
            if match := ANY_GROUP.fullmatch(group):
                _take(plugin, group, int(match[1]), line)
        if plugin.speaks_our_protocol or plugin.newest or plugin.notes:
            plugin.notes += _problems(one)
            found.setdefault(one.name, plugin)
    own = found.get(OWN) or Found(OWN, None, notes=[NO_METADATA])
    found[OWN] = Found(OWN, own.metadata, modules=[BUILTIN], version=own_version(), notes=own.notes)
    return dict(sorted(found.items()))


def lines_of(text: str) -> Iterator[tuple[str, str]]:
    """Each line of an ``entry_points.txt`` with its group, without comments and empty lines."""
    group = ""
    for line in map(str.strip, text.splitlines()):
        if header := HEADER.fullmatch(line):
            group = header[1]
        elif line and not line.startswith("#"):
            yield group, line


def _take(plugin: Found, group: str, protocol: int, line: str) -> None:
    name, equals, value = (part.strip() for part in line.partition("="))
    if not equals:
        plugin.notes.append(f"{ENTRY_POINTS}: expected 'name = module:attr', got {line[:60]!r}; that line is ignored")
    elif group == READOUT_GROUP:
        plugin.readouts.append((name, _reference(EntryPoint(name, value, group))))
    elif group == PLUGIN_GROUP:
        plugin.modules.append(_reference(EntryPoint(name, value, group)))
    else:
        plugin.newest = max(plugin.newest, protocol)


def _problems(one: Installed) -> Iterator[str]:
    if one.stated_name is None:
        yield f"its metadata states no name; named as its folder: {one.place}"
    if one.hidden:
        places = ", ".join(f"{copy.version} in {copy.place}" for copy in one.hidden)
        yield f"{one.version} in {one.place} is used, not {places}"


def _reference(point: EntryPoint) -> str:
    """``module:attr`` of what may be written as ``module : attr [extra]``; unchanged, if it is neither."""
    try:
        return f"{point.module}:{point.attr}" if point.attr else point.module
    except (AttributeError, ValueError):  # which one depends on the version of Python
        return point.value
