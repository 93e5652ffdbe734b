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
NAME, VERSION = (
    re.compile(rf"^{word}:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE | re.IGNORECASE) for word in ("Name", "Version")
)


@dataclass
class Found:
    """The entry points of one distribution.

    Args:
        distribution: Its normalised name.
        metadata: What the installer left of it; None for one that is not installed.
        readouts: Names and references of the group ``regplug_readouts_v1``.
        modules: References of the group ``regplug_v1``.
        newest: The newest protocol it speaks, for one that does not speak ours.
        version: ``unknown`` where its metadata states none.
    """

    distribution: str
    metadata: Distribution | None
    readouts: list[tuple[str, str]] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    newest: int = 0
    version: str = "unknown"

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
    points = list(_entry_points())  # kept, for a distribution is known by its identity here
    stated: dict[int, tuple[str, str] | None] = {}
    for point in points:
        match = ANY_GROUP.fullmatch(point.group)
        if id(point.dist) not in stated:
            stated[id(point.dist)] = name_and_version(point.dist)
        said = stated[id(point.dist)]
        if match is None or said is None:  # an entry point that belongs to nobody cannot be named
            continue
        name, version = said
        one = found.setdefault(name, Found(name, point.dist, version=version))
        if point.group == READOUT_GROUP:
            one.readouts.append((point.name, _reference(point)))
        elif point.group == PLUGIN_GROUP:
            one.modules.append(_reference(point))
        else:
            one.newest = max(one.newest, int(match.group(1)))
    return dict(sorted(found.items()))


def name_and_version(distribution: Distribution | None) -> tuple[str, str] | None:
    """A distribution's normalised name, and its version; None for one that states no name."""
    if distribution is None:
        return None
    try:
        # importlib.metadata has the whole file parsed as an e-mail, for each of the two anew
        head = (distribution.read_text("METADATA") or "").partition("\n\n")[0]
        name, version = NAME.search(head), VERSION.search(head)
        if name and version:
            return normalise(name[1]), version[1]
        return (normalise(distribution.name), distribution.version or "unknown") if distribution.name else None
    except Exception:  # an interrupted removal leaves entry points without metadata
        return None


def _reference(point: EntryPoint) -> str:
    """``module:attr`` of what may be written ``module : attr [extra]``; as it is written where it is neither."""
    try:
        return f"{point.module}:{point.attr}" if point.attr else point.module
    except (AttributeError, ValueError):  # as Python's version has it
        return point.value


def _entry_points() -> Iterable[EntryPoint]:
    try:
        every = entry_points()
        return [point for group in every.groups if ANY_GROUP.fullmatch(group) for point in every.select(group=group)]
    except Exception:  # one malformed entry_points.txt, anywhere, stops importlib.metadata for everybody
        return _entry_points_one_by_one()


def _entry_points_one_by_one() -> Iterable[EntryPoint]:
    seen: set[str] = set()
    for distribution in distributions():
        said = name_and_version(distribution)
        try:
            points = list(distribution.entry_points)
        except Exception:  # this is the malformed one; `regplug list` must still show the others
            continue
        if said is not None and said[0] not in seen:  # the first on sys.path is the one that an import finds
            seen.add(said[0])
            yield from points
