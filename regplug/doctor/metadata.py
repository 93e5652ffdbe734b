"""Reads the metadata of every installed distribution, and finds what is damaged, stale or there twice. Imports none."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from regplug.discovery import ANY_GROUP, PLUGIN_GROUP, READOUT_GROUP, normalise
from regplug.doctor.findings import PROBLEM, WARNING, Finding, clip

HEADER = re.compile(r"\[(.*)\]")
OURS = re.compile(rf"^\s*\[\s*{ANY_GROUP.pattern}\s*\]", re.MULTILINE)


@dataclass(frozen=True)
class Metadata:
    """The metadata folder of one distribution.

    Args:
        path: The folder, ``.../name-1.0.dist-info``.
        name: The distribution's normalised name, as the folder is named.
        entry_points: The text of ``entry_points.txt``; None if it is no text, empty if there is none.
    """

    path: Path
    name: str
    entry_points: str | None

    @property
    def is_plugins(self) -> bool:
        """Whether it has an entry point of regplug's."""
        return bool(OURS.search(self.entry_points or ""))

    @property
    def is_readable(self) -> bool:
        """Whether Python can read its entry points; where it cannot, ``importlib.metadata.entry_points`` raises."""
        try:
            list(Distribution.at(self.path).entry_points)
        except Exception:  # which one depends on the Python and on the fault
            return False
        return True

    @property
    def version(self) -> str:
        """The version, as its folder is named where nothing else says it."""
        try:
            stated: str | None = Distribution.at(self.path).version
        except Exception:  # metadata that is missing or damaged raises many things
            stated = None
        return stated or self.path.stem.partition("-")[2] or "unknown"

    def editable_folder(self) -> Path | None:
        """Where an editable installation has its sources; None for any other."""
        try:
            direct: Any = json.loads((self.path / "direct_url.json").read_text())
            if direct.get("dir_info", {}).get("editable") and direct["url"].startswith("file:"):
                return Path(url2pathname(urlparse(direct["url"]).path))
        except (OSError, ValueError, AttributeError, KeyError):
            pass
        return None


def survey(search_path: Iterable[str]) -> list[Metadata]:
    """The metadata folders along a search path, each once, in its order."""
    found: dict[Path, Metadata] = {}
    for folder in dict.fromkeys(Path(entry or ".").absolute().resolve() for entry in search_path):
        try:
            paths = sorted(path for path in folder.iterdir() if path.suffix in (".dist-info", ".egg-info"))
        except OSError:  # a zip file, or a folder that is gone
            continue
        for path in paths:
            if path.is_dir():
                found[path] = Metadata(path, normalise(path.stem.partition("-")[0]), _text(path / "entry_points.txt"))
    return list(found.values())


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


def check_metadata(search_path: Sequence[str] | None = None) -> tuple[list[Finding], list[Metadata]]:
    """Look at every distribution along a search path; ``sys.path`` if none is given.

    Returns:
        What is wrong, and the plugins that nobody can see, for their ``entry_points.txt`` cannot be read.
    """
    every = survey(sys.path if search_path is None else search_path)
    findings = [finding for one in every for finding in (*_damage(one), *_unread_groups(one), *_staleness(one))]
    hidden = [one for one in every if one.is_plugins and malformed(one.entry_points or "")]
    return [*findings, *_copies(every)], hidden


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        return None
    except OSError:
        return ""


def _damage(one: Metadata) -> Iterator[Finding]:
    level, owner = (PROBLEM, one.name) if one.is_plugins else (WARNING, None)
    if one.path.name.startswith("~"):  # how pip names what it is about to delete
        yield Finding(level, owner, f"{one.path}: left by an interrupted removal; delete it.")
        return
    if not any((one.path / name).is_file() for name in ("METADATA", "PKG-INFO")):
        yield Finding(
            level,
            owner,
            f"{one.path}: no METADATA, as an interrupted removal leaves it; delete it or install it again.",
        )
    faults = ["expected text in UTF-8"] if one.entry_points is None else malformed(one.entry_points)
    if faults:
        more = f" and {len(faults) - 1} more" if faults[1:] else ""
        stops = "" if one.is_readable else ", which stops whoever lists entry points, as importing torch does"
        yield Finding(
            level if one.is_readable else PROBLEM,
            owner,
            f"{one.path / 'entry_points.txt'}: {faults[0]}{more}{stops}; install {one.name} again.",
        )


def _unread_groups(one: Metadata) -> Iterator[Finding]:
    for group in re.findall(r"^\s*\[\s*(regplug[^\]]*?)\s*\]", one.entry_points or "", re.MULTILINE):
        if not ANY_GROUP.fullmatch(group):
            yield Finding(
                WARNING,
                one.name,
                f"plugin {one.name!r}: expected an entry-point group {PLUGIN_GROUP} or {READOUT_GROUP}, "
                f"got {clip(group, 60)!r}, which nobody reads.",
            )


def _staleness(one: Metadata) -> Iterator[Finding]:
    folder = one.editable_folder()
    if folder is None or not one.is_plugins:
        return
    again = f"install it again: pip install -e {folder}"
    owner = f"plugin {one.name!r}"
    if not folder.is_dir():
        yield Finding(
            PROBLEM, one.name, f"{owner}: expected its sources in {folder}, got no folder; {again}, or uninstall it."
        )
        return
    try:
        project = _project(folder)
    except ValueError as error:
        yield Finding(WARNING, one.name, f"{owner}: {folder / 'pyproject.toml'}: {clip(str(error))}.")
        return
    version = project.get("version")
    if isinstance(version, str) and _comparable(version) != _comparable(one.version):
        yield Finding(
            WARNING,
            one.name,
            f"{owner}: its sources say version {clip(version, 40)}, installed is {one.version}; {again}",
        )
    if not project or "entry-points" in project.get("dynamic", ()):
        return
    stated, installed = _stated(project), _installed(one.entry_points or "")
    if stated != installed:
        changed = sorted({f"{group}: {name}" for group, name, _ in stated ^ installed})
        yield Finding(WARNING, one.name, f"{owner}: its sources state other entry points ({changed[0]}, ...); {again}")


def _project(folder: Path) -> dict[str, Any]:
    """The ``[project]`` table of the sources; empty where there is none, or no way to read it (Python 3.10)."""
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
    found, group = set(), ""
    for line in map(str.strip, text.splitlines()):
        if header := HEADER.fullmatch(line):
            group = header[1].strip()
        elif ANY_GROUP.fullmatch(group) and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.add((group, name.strip(), re.sub(r"\s", "", value)))
    return found


def _comparable(version: str) -> list[str]:
    """A version's parts, so that the spellings that installers make one (``1.0-beta``, ``1.0b0``) are equal."""
    text = version.lower().removeprefix("v").replace("alpha", "a").replace("beta", "b")
    parts = re.findall(r"\d+|[a-z]+|\+", text)
    parts = [str(int(part)) if part.isdigit() else part for part in parts]
    return [*parts, "0"] if parts and parts[-1].isalpha() else parts


def _copies(every: Sequence[Metadata]) -> Iterator[Finding]:
    by_name: dict[str, list[Metadata]] = {}
    for one in every:
        if not one.path.name.startswith("~"):
            by_name.setdefault(one.name, []).append(one)
    for name, copies in by_name.items():
        if not any(one.is_plugins for one in copies):
            continue
        # what setuptools leaves in the sources of an editable installation is the same one
        sources = [folder.resolve() for one in copies if (folder := one.editable_folder()) is not None]
        separate = [one for one in copies if not set(sources) & set(one.path.parents)]
        if len(separate) > 1:
            places = ", ".join(f"{one.version} in {one.path.parent}" for one in separate)
            message = f"installed {len(separate)} times ({places}); the first is used; uninstall the others."
            yield Finding(WARNING, name, f"plugin {name!r}: {message}")
