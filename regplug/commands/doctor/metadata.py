"""Reads the metadata of every installed distribution; finds what is damaged, stale or duplicate. Imports none."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from regplug.commands.doctor.diagnostics import PROBLEM, WARNING, Diagnostic, clip
from regplug.registry.discovery import ANY_GROUP, ENTRY_POINTS, PLUGIN_GROUP, READOUT_GROUP, lines_of
from regplug.registry.distributions import UNKNOWN, VERSION, Installed, first_of, separate

HEADER = re.compile(r"\[(.*)\]")
BOM = "\ufeff"
LOOSE_VERSION = re.compile(r"v?(\d+!)?\d+(\.\d+)*[0-9A-Za-z.+_-]*")  # old packages do not follow PEP 440


@dataclass(frozen=True)
class Metadata:
    """The metadata of one distribution.

    Args:
        installed: What can be read of it.
        entry_points: The text of ``entry_points.txt``; empty if there is none.
    """

    installed: Installed
    entry_points: str

    @property
    def place(self) -> str:
        """The folder, ``.../name-1.0.dist-info``."""
        return self.installed.place

    @property
    def name(self) -> str:
        """The distribution's name."""
        return self.installed.name or UNKNOWN

    @cached_property
    def is_plugin(self) -> bool:
        """Whether it has an entry point of regplug."""
        return any(ANY_GROUP.fullmatch(group) for group, _ in lines_of(self.entry_points))

    @cached_property
    def is_readable(self) -> bool:
        """Whether Python can read its entry points; if not, ``importlib.metadata.entry_points`` raises."""
        try:
            list(self.installed.distribution.entry_points)
        except Exception:  # the kind depends on Python's version and on the fault
            return False
        return True

    @cached_property
    def encoding_fault(self) -> str | None:
        """What is wrong with the bytes of its ``entry_points.txt``."""
        try:
            text = self.installed.distribution.read_text(ENTRY_POINTS) or ""
        except UnicodeDecodeError:
            return "expected text in UTF-8"
        except Exception:  # such as a file without read permission
            return "cannot be read"
        return (
            "expected no byte order mark, which hides its first group from other programs" if text[:1] == BOM else None
        )


def all_metadata(search_path: Sequence[str]) -> list[Metadata]:
    """The metadata on a search path, in folders, eggs and zip files: each once, in the order of the path."""
    folders = list(dict.fromkeys(os.path.realpath(entry or os.curdir) for entry in search_path))
    every = sorted(map(Installed, distributions(path=folders)), key=lambda one: (_rank(one, folders), one.place))
    return [Metadata(one, one.text(ENTRY_POINTS) or "") for one in every if one.path is None or one.path.is_dir()]


def _rank(one: Installed, folders: Sequence[str]) -> int:
    return next((rank for rank, folder in enumerate(folders) if one.place.startswith(folder)), len(folders))


def malformed(text: str) -> list[str]:
    """What is wrong with an ``entry_points.txt``, line by line.

    Example:
        >>> malformed("[console_scripts]\\nrun = acme:main\\noops")
        ["line 3: expected 'name = module:attr', got 'oops'"]
    """
    faults = []
    group: str | None = None
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        if header := HEADER.fullmatch(line):
            group = header[1].strip()
        elif line.startswith("["):
            faults.append(f"line {number}: expected '[group]', got {clip(line, 60)!r}")
        elif "=" not in line:
            faults.append(f"line {number}: expected 'name = module:attr', got {clip(line, 60)!r}")
        elif group is None:
            faults.append(f"line {number}: expected a '[group]' before it, got {clip(line, 60)!r}")
    return faults


def check_metadata(search_path: Sequence[str] | None = None) -> list[Diagnostic]:
    """What is wrong with the distributions on a search path; ``sys.path`` if None."""
    path = sys.path if search_path is None else search_path
    every = all_metadata(path)
    of_each = [found for one in every for found in (*_damage(one), *_unread_groups(one), *_staleness(one))]
    return [*_unlisted(path), *of_each, *_copies(every)]


def _unlisted(search_path: Sequence[str]) -> Iterator[Diagnostic]:
    """Folders on the path that cannot be listed: a plugin there is not found, and nothing else reports that."""
    for entry in dict.fromkeys(search_path):
        if entry and not Path(entry).is_file() and os.path.lexists(entry):
            try:
                os.scandir(entry).close()
            except OSError as error:
                why = f"on the search path, but cannot be listed ({error.strerror})"
                yield Diagnostic(WARNING, None, f"{entry}: {why}; plugins in it are not found.")


def _damage(one: Metadata) -> Iterator[Diagnostic]:
    level, owner = (PROBLEM, one.name) if one.is_plugin else (WARNING, None)
    if one.installed.is_leftover:
        yield Diagnostic(level, None, f"{one.place}: left by an interrupted removal, and ignored; delete it.")
        return
    again = "delete it or install it again"
    if not one.installed.head:
        yield Diagnostic(level, owner, f"{one.place}: no METADATA, as an interrupted removal leaves it; {again}.")
    elif one.installed.stated_name is None:
        yield Diagnostic(
            WARNING, owner, f"{one.place}: states no Name that can be used; taken as {one.name!r}; {again}."
        )
    elif not VERSION.search(one.installed.head):
        yield Diagnostic(
            WARNING, owner, f"{one.place}: states no Version; taken as {one.installed.version!r}; {again}."
        )
    elif one.is_plugin and not LOOSE_VERSION.fullmatch(one.installed.version):
        wrong = f"expected a version, got {clip(one.installed.version, 40)!r}"
        yield Diagnostic(WARNING, owner, f"{one.place}: {wrong}; a bundle writes '_' for what no version has in it.")
    faults = [*filter(None, [one.encoding_fault]), *malformed(one.entry_points)]
    if faults:
        more = f" and {len(faults) - 1} more" if faults[1:] else ""
        stops = "" if one.is_readable else ", which stops all that lists entry points, as importing torch does"
        place = f"{one.place}{os.sep}{ENTRY_POINTS}"
        message = f"{place}: {faults[0]}{more}{stops}; install {one.name} again."
        yield Diagnostic(level if one.is_readable else PROBLEM, owner, message)


def _unread_groups(one: Metadata) -> Iterator[Diagnostic]:
    for group in re.findall(r"^\s*\[\s*(regplug[^\]]*?)\s*\]", one.entry_points, re.MULTILINE):
        if not ANY_GROUP.fullmatch(group):
            yield Diagnostic(
                WARNING,
                one.name,
                f"plugin {one.name!r}: expected an entry-point group {PLUGIN_GROUP} or {READOUT_GROUP}, "
                f"got {clip(group, 60)!r}, which is not read.",
            )


def _staleness(one: Metadata) -> Iterator[Diagnostic]:
    folder = one.installed.editable_folder()
    if folder is None or not one.is_plugin:
        return
    again = f"install it again: pip install -e {folder}"
    owner = f"plugin {one.name!r}"
    if not folder.is_dir():
        yield Diagnostic(
            PROBLEM, one.name, f"{owner}: expected its sources in {folder}, got no folder; {again}, or uninstall it."
        )
        return
    try:
        project = _project(folder)
    except ValueError as error:
        yield Diagnostic(WARNING, one.name, f"{owner}: {folder / 'pyproject.toml'}: {clip(str(error))}.")
        return
    version = project.get("version")
    if isinstance(version, str) and _comparable(version) != _comparable(one.installed.version):
        yield Diagnostic(
            WARNING,
            one.name,
            f"{owner}: its sources say version {clip(version, 40)}, installed is {one.installed.version}; {again}",
        )
    if not project or "entry-points" in project.get("dynamic", ()):
        return
    stated, installed = _stated(project), _installed(one.entry_points)
    if stated != installed:
        changed = sorted({f"{group}: {name}" for group, name, _ in stated ^ installed})
        yield Diagnostic(
            WARNING, one.name, f"{owner}: its sources state other entry points ({changed[0]}, ...); {again}"
        )


def _project(folder: Path) -> dict[str, Any]:
    """The ``[project]`` table of the sources; empty if there is none, or Python 3.10 cannot read it."""
    try:
        import tomllib
    except ImportError:
        return {}
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8")).get("project")
    except OSError:
        return {}
    return project if isinstance(project, dict) else {}


def _stated(project: dict[str, Any]) -> set[tuple[str, str, str]]:
    groups = project.get("entry-points", {})
    return {
        (group, name, re.sub(r"\s", "", str(value)))
        for group, points in groups.items()
        if ANY_GROUP.fullmatch(group) and isinstance(points, dict)
        for name, value in points.items()
    }


def _installed(text: str) -> set[tuple[str, str, str]]:
    found = set()
    for group, line in lines_of(text):
        if ANY_GROUP.fullmatch(group) and "=" in line:
            name, _, value = line.partition("=")
            found.add((group, name.strip(), re.sub(r"\s", "", value)))
    return found


def _comparable(version: str) -> list[str]:
    """A version's parts; versions that installers treat as the same (``1.0-beta``, ``1.0b0``) are equal."""
    text = version.lower().removeprefix("v").replace("alpha", "a").replace("beta", "b")
    parts = re.findall(r"\d+|[a-z]+|\+", text)
    parts = [str(int(part)) if part.isdigit() else part for part in parts]
    return [*parts, "0"] if parts and parts[-1].isalpha() else parts


def _copies(every: Sequence[Metadata]) -> Iterator[Diagnostic]:
    by_name: dict[str, list[Metadata]] = {}
    for one in every:
        if not one.installed.is_leftover:
            by_name.setdefault(one.name, []).append(one)
    for name, copies in by_name.items():
        if any(one.is_plugin for one in copies):
            several = separate([one.installed for one in copies])
            if len(several) > 1:
                used = first_of(several)
                places = ", ".join(f"{one.version} in {one.place}" for one in several)
                message = f"installed {len(several)} times ({places}); {used.place} is used; uninstall the others."
                yield Diagnostic(WARNING, name, f"plugin {name!r}: {message}")
