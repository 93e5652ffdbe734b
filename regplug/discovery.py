"""Finds regplug's entry points among the installed distributions, and imports nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points

PROTOCOL = 1
READOUT_GROUP = f"regplug_readouts_v{PROTOCOL}"
PLUGIN_GROUP = f"regplug_v{PROTOCOL}"
ANY_GROUP = re.compile(r"regplug(?:_readouts)?_v(\d+)")


@dataclass
class Found:
    """The entry points of one distribution.

    Args:
        distribution: Its normalised name.
        metadata: Where its version stands; read only when somebody asks.
        readouts: Names and references of the group ``regplug_readouts_v1``.
        modules: References of the group ``regplug_v1``.
        newest: The newest protocol it speaks, for one that does not speak ours.
    """

    distribution: str
    metadata: Distribution | None
    readouts: list[tuple[str, str]] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    newest: int = 0

    @property
    def version(self) -> str:
        """The distribution's version, ``unknown`` where its metadata states none."""
        return (self.metadata.version if self.metadata is not None else None) or "unknown"

    @property
    def speaks_our_protocol(self) -> bool:
        """Whether it has an entry point of protocol 1, whatever newer ones it has besides."""
        return bool(self.readouts or self.modules)


def normalise(distribution: str) -> str:
    """The one spelling of a distribution's name: lower case, runs of ``-_.`` as one dash (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def discover() -> dict[str, Found]:
    """Every distribution with a regplug entry point, sorted by name, so that directory order never decides."""
    found: dict[str, Found] = {}
    for point in _entry_points():
        match = ANY_GROUP.fullmatch(point.group)
        name = _name_of(point.dist)
        if match is None or name is None:  # an entry point that belongs to nobody cannot be named
            continue
        one = found.setdefault(name, Found(name, point.dist))
        if point.group == READOUT_GROUP:
            one.readouts.append((point.name, point.value))
        elif point.group == PLUGIN_GROUP:
            one.modules.append(point.value)
        else:
            one.newest = max(one.newest, int(match.group(1)))
    return dict(sorted(found.items()))


def _name_of(distribution: Distribution | None) -> str | None:
    try:
        return normalise(distribution.name) if distribution is not None else None
    except Exception:  # an interrupted removal leaves entry points without metadata
        return None


def _entry_points() -> Iterable[EntryPoint]:
    try:
        every = entry_points()
        return [point for group in every.groups if ANY_GROUP.fullmatch(group) for point in every.select(group=group)]
    except Exception:  # one malformed entry_points.txt, anywhere, stops importlib.metadata for everybody
        return _entry_points_one_by_one()


def _entry_points_one_by_one() -> Iterable[EntryPoint]:
    seen: set[str] = set()
    for distribution in distributions():
        try:
            name = normalise(distribution.name)
            points = list(distribution.entry_points)
        except Exception:  # this is the malformed one; `regplug list` must still show the others
            continue
        if name not in seen:  # the first on sys.path is the one that an import finds
            seen.add(name)
            yield from points
