"""Reads the metadata of the installed distributions, damaged or not; imports nothing and raises nothing."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from regplug.registry.entries import NAME_PATTERN

UNKNOWN = "unknown"  # a version that is stated nowhere
NAME, VERSION = (
    re.compile(rf"^{word}:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE | re.IGNORECASE) for word in ("Name", "Version")
)
END_OF_RELEASE = (0, 0, "~")  # after the letters of a pre-release, before another number


class Installed:
    """One installed distribution.

    ``importlib.metadata`` raises if a file has another encoding or has no name, parses each metadata file as an e-mail,
    and counts what pip is about to delete.

    Args:
        distribution: What a finder of the import system gives.
    """

    def __init__(self, distribution: Distribution) -> None:
        self.distribution = distribution
        self.hidden: list[Installed] = []  # other copies, which are not imported
        # in a folder or a zip file; other finders may have none, and no public attribute gives it
        self.path: Any = getattr(distribution, "_path", None)

    @property
    def place(self) -> str:
        """Where its metadata is."""
        return str(self.path or type(self.distribution).__name__)

    @property
    def is_leftover(self) -> bool:
        """Whether pip renamed it to delete it, and was interrupted."""
        return self.path is not None and self.path.name.startswith("~")

    @property
    def key(self) -> str | None:
        """The name to find copies by: its folder's, because that needs no file to be read."""
        return self._named_by_folder[0] or self.name

    @cached_property
    def head(self) -> str:
        """The lines of METADATA above the description; empty if there is no such file."""
        text = self.text("METADATA") or self.text("PKG-INFO") or ""
        return text.lstrip().partition("\n\n")[0]

    @property
    def name(self) -> str | None:
        """Its normalised name: that in METADATA, else that of its folder; None if neither has one."""
        return self.stated_name or self._named_by_folder[0]

    @property
    def stated_name(self) -> str | None:
        """The normalised name in METADATA; None if there is no valid one."""
        return _plain(found[1]) if (found := NAME.search(self.head)) else None

    @property
    def version(self) -> str:
        """Its version: that in METADATA, else that of its folder; ``unknown`` if neither has one."""
        found = VERSION.search(self.head)
        return found[1] if found else self._named_by_folder[1]

    def text(self, file: str) -> str | None:
        """A file of its metadata; None if it cannot be read. Text that is not UTF-8 is read as UTF-16 or Latin-1."""
        try:
            text = self.distribution.read_text(file)
        except UnicodeDecodeError as error:
            text = _decode(bytes(error.object))
        except Exception:  # a device that fails, a third-party finder
            return None
        return text and text.removeprefix("\ufeff")

    def owns(self, module: str) -> bool:
        """Whether a top-level module is among its files."""
        if module in (self.text("top_level.txt") or "").split():
            return True
        record = "\n" + (self.text("RECORD") or "")
        return any(f"\n{module}{end}" in record for end in ("/", ".py,", ".so,", ".cpython-", ".abi3."))

    def editable_folder(self) -> Path | None:
        """Where an editable installation has its sources; None if it is not editable."""
        try:
            direct: Any = json.loads(self.text("direct_url.json") or "{}")
            if direct.get("dir_info", {}).get("editable") and direct["url"].startswith("file:"):
                return Path(unquote(urlparse(direct["url"]).path))
        except (ValueError, AttributeError, KeyError, TypeError):
            pass
        return None

    @cached_property
    def _named_by_folder(self) -> tuple[str | None, str]:
        if self.path is None:
            return None, UNKNOWN
        folder = self.path.parent if self.path.name == "EGG-INFO" else self.path
        name, *rest = re.sub(r"\.(dist-info|egg-info|egg)/?$", "", folder.name).split("-")
        return _plain(name), rest[0] if rest and rest[0] else UNKNOWN


def normalise(distribution: str) -> str:
    """A distribution's name in lower case, runs of ``-_.`` as one dash (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def installed() -> list[Installed]:
    """Every distribution once, in the order of ``sys.path``, without leftovers of a removal.

    Of several copies it is the one that an import finds: in the first folder, the newest complete one there.
    """
    copies: dict[str, list[Installed]] = {}
    for one in everything():
        if not one.is_leftover and one.key is not None:
            copies.setdefault(one.key, []).append(one)
    return [first_of(some) for some in copies.values()]


def version_of(distribution: str) -> str:
    """The version of an installed distribution; ``unknown`` if it has no metadata, as in a frozen application."""
    name = normalise(distribution)
    return next((one.version for one in installed() if one.name == name), UNKNOWN)


def everything() -> Iterator[Installed]:
    """What all finders of the import system know, with leftovers and copies."""
    for finder in list(sys.meta_path):
        try:
            found = list(finder.find_distributions(DistributionFinder.Context()))  # type: ignore[attr-defined]
        except Exception:  # a finder without distributions, or one that fails: go on with the others
            continue
        yield from map(Installed, found)


def first_of(copies: list[Installed]) -> Installed:
    """The copy of one distribution that an import finds; its ``hidden`` has the others."""
    first = copies[0]
    if len(copies) > 1:
        complete = [one for one in copies if one.head] or copies
        folder = _folder(complete[0])
        first = max((one for one in complete if _folder(one) == folder), key=lambda one: _order(one.version))
        first.hidden = [one for one in separate(copies) if one is not first and one.place != first.place]
    return first


def separate(copies: Iterable[Installed]) -> list[Installed]:
    """The copies without duplicates: one found by two paths, or an editable installation and its sources."""
    by_place: dict[str, Installed] = {}
    for one in copies:
        by_place.setdefault(os.path.realpath(one.place), one)
    sources = {os.path.realpath(folder) for one in by_place.values() if (folder := one.editable_folder()) is not None}
    return [one for place, one in by_place.items() if not any(place.startswith(f"{folder}/") for folder in sources)]


def _folder(one: Installed) -> str:
    return str(one.path.parent) if one.path is not None else ""


def _order(version: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|[a-z]+", version.lower())
    return [*((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts), END_OF_RELEASE]


def _plain(name: str) -> str | None:
    name = normalise(name)
    return name if NAME_PATTERN.fullmatch(name) else None


def _decode(content: bytes) -> str:
    is_wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    return content.decode("utf-16" if is_wide else "latin-1", "replace").replace("\r\n", "\n")
