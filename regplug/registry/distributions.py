"""Reads what installers left of the distributions on the path, in whatever state; imports none and raises nothing."""

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

UNKNOWN = "unknown"  # a version that nothing states
NAME, VERSION = (
    re.compile(rf"^{word}:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE | re.IGNORECASE) for word in ("Name", "Version")
)
END_OF_RELEASE = (0, 0, "~")  # after the letters of a pre-release, before another number


class Installed:
    """One distribution.

    ``importlib.metadata`` raises where a file has another encoding or states no name, parses every metadata file as an
    e-mail, and counts what pip is about to delete.

    Args:
        distribution: As a finder of the import system gives it.
    """

    def __init__(self, distribution: Distribution) -> None:
        self.distribution = distribution
        self.hidden: list[Installed] = []  # its other copies, which nobody imports
        # in a folder or a zip file; a finder of others need not have one, and there is no public way to it
        self.path: Any = getattr(distribution, "_path", None)

    @property
    def place(self) -> str:
        """Where its metadata is."""
        return str(self.path or type(self.distribution).__name__)

    @property
    def is_leftover(self) -> bool:
        """Whether pip renamed it to delete it, and did not come to that."""
        return self.path is not None and self.path.name.startswith("~")

    @property
    def key(self) -> str | None:
        """The name to find copies by: as its folder is named, which no file must be read for."""
        return self._named_by_folder[0] or self.name

    @cached_property
    def head(self) -> str:
        """The lines of METADATA above the description; empty if there is no such file."""
        text = self.text("METADATA") or self.text("PKG-INFO") or ""
        return text.lstrip().partition("\n\n")[0]

    @property
    def name(self) -> str | None:
        """Its normalised name: as METADATA states it, else its folder; None where neither gives one."""
        return self.stated_name or self._named_by_folder[0]

    @property
    def stated_name(self) -> str | None:
        """The normalised name that METADATA states; None where there is none that can be written as a name."""
        return _plain(found[1]) if (found := NAME.search(self.head)) else None

    @property
    def version(self) -> str:
        """Its version: as METADATA states it, else its folder; ``unknown`` where neither does."""
        found = VERSION.search(self.head)
        return found[1] if found else self._named_by_folder[1]

    def text(self, file: str) -> str | None:
        """A file of its metadata; None if there is none. Text that is not UTF-8 is taken for what it may be."""
        try:
            text = self.distribution.read_text(file)
        except UnicodeDecodeError as error:
            text = _decode(bytes(error.object))
        except Exception:  # a device that fails, a finder of others
            return None
        return text and text.removeprefix("\ufeff")

    def owns(self, module: str) -> bool:
        """Whether a top-level module is among its files."""
        if module in (self.text("top_level.txt") or "").split():
            return True
        record = "\n" + (self.text("RECORD") or "")
        return any(f"\n{module}{end}" in record for end in ("/", ".py,", ".so,", ".cpython-", ".abi3."))

    def editable_folder(self) -> Path | None:
        """Where an editable installation has its sources; None for any other."""
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
    """The one spelling of a distribution's name: lower case, runs of ``-_.`` as one dash (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def installed() -> list[Installed]:
    """Every distribution once, in the order of ``sys.path``; what is left of a removal is none.

    Of two copies it is the one that an import finds: in the first folder, and there the newest that is complete.
    """
    copies: dict[str, list[Installed]] = {}
    for one in everything():
        if not one.is_leftover and one.key is not None:
            copies.setdefault(one.key, []).append(one)
    return [first_of(some) for some in copies.values()]


def version_of(distribution: str) -> str:
    """The version of an installed distribution; ``unknown`` for one without metadata, as in a frozen application."""
    name = normalise(distribution)
    return next((one.version for one in installed() if one.name == name), UNKNOWN)


def everything() -> Iterator[Installed]:
    """What all finders of the import system know, leftovers and copies too."""
    for finder in list(sys.meta_path):
        try:
            found = list(finder.find_distributions(DistributionFinder.Context()))  # type: ignore[attr-defined]
        except Exception:  # it knows none, or fails: the other finders are asked all the same
            continue
        yield from map(Installed, found)


def first_of(copies: list[Installed]) -> Installed:
    """Of the copies of one distribution the one that counts; it knows the others."""
    first = copies[0]
    if len(copies) > 1:
        complete = [one for one in copies if one.head] or copies
        folder = _folder(complete[0])
        first = max((one for one in complete if _folder(one) == folder), key=lambda one: _order(one.version))
        first.hidden = [one for one in separate(copies) if one is not first and one.place != first.place]
    return first


def separate(copies: Iterable[Installed]) -> list[Installed]:
    """The copies that are not one and the same: found by two paths, or an editable installation and its sources."""
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
