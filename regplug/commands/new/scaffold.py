"""Writes the package of a new plugin: code, entry points, tests."""

from __future__ import annotations

import keyword
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from regplug.errors import ExportError, SpecError
from regplug.registry import builtin

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

TEMPLATES = files("regplug.commands.new") / "template"  # not by path: regplug may be in an archive
# stricter than an index requires: one form that works in a shell, an import and a URL
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# what a plugin may offer, and how the README calls it
KINDS = {
    "readout": "a register readout",
    "backbone": "a backbone",
    "film": "a FiLM generator",
    "backend": "an export backend",
}
AFFIXES = re.compile(r"^regplug-|-(readouts?|backbones?|films?|backends?|plugin|regplug)$")


@dataclass(frozen=True)
class Names:
    """The names in the files of a new plugin."""

    distribution: str
    package: str
    strategy: str
    readout_class: str


def names_of(path: Path, strategy: str | None = None) -> Names:
    """The names, derived from the folder's name.

    Args:
        path: The folder to create; its last part is the distribution's name.
        strategy: The readout's name; derived from the distribution's when None.

    Raises:
        SpecError: A name cannot be used: it has other characters, or is a built-in strategy or an existing package.
    """
    distribution = path.name
    _check_name("distribution", distribution, "acme-readouts")
    package = distribution.replace("-", "_")
    if keyword.iskeyword(package) or package in sys.stdlib_module_names or package == "regplug" or find_spec(package):
        raise SpecError(f"distribution {distribution!r}: expected a new package, got {package!r}, which Python knows.")
    if strategy is None:
        strategy = AFFIXES.sub("", distribution)
    _check_name("strategy", strategy, "acme")
    reserved = [entry.name for entry in builtin.regplug_readouts()]
    if strategy in reserved:
        raise SpecError(f"strategy {strategy!r}: expected a new name, got a built-in; use --strategy NAME.")
    words = "".join(word.capitalize() for word in strategy.split("-"))
    return Names(distribution, package, strategy, words if words.endswith("Readout") else f"{words}Readout")


def write_plugin(path: Path, names: Names, kinds: Sequence[str] = ("readout",)) -> list[Path]:
    """Write the package, all of it or nothing; gives its files, relative to ``path``.

    Args:
        path: The folder to create.
        names: The names in the files.
        kinds: One or more of ``KINDS``.

    Raises:
        ExportError: The path exists and is not an empty folder, or the system refuses; nothing was changed.
    """
    check_empty(path)
    values = _values(names, [kind for kind in KINDS if kind in kinds])
    temporary = path.parent / f".{path.name}.regplug-{secrets.token_hex(6)}"
    written = []
    try:
        for target, text in _files(values, kinds):
            (temporary / target).parent.mkdir(parents=True, exist_ok=True)
            (temporary / target).write_text(text, encoding="utf-8")
            written.append(target)
        temporary.rename(path)  # never replaces a folder that is not empty, even one created concurrently
    except OSError as error:
        raise ExportError(f"plugin {path}: cannot be written: {error.strerror}; nothing was changed.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted(written)


def check_empty(path: Path) -> None:
    """Refuse a path that exists and is not an empty folder.

    Raises:
        ExportError: It exists and is not an empty folder.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ExportError(f"plugin {path}: expected a new folder, got a file that exists; it is kept.")
    if path.is_dir() and (held := sorted(entry.name for entry in path.iterdir())):
        raise ExportError(f"plugin {path}: expected a new or empty folder, got one that holds {', '.join(held[:3])}.")


def _check_name(word: str, name: str, example: str) -> None:
    if not NAME.fullmatch(name):
        raise SpecError(f"{word}: expected lower-case letters, digits and '-', as in {example!r}, got {name!r}.")


def _values(names: Names, kinds: Sequence[str]) -> dict[str, str]:
    """The values of the templates' variables."""
    words = {**vars(names), "stem": names.readout_class.removesuffix("Readout") or names.readout_class}
    by_module = [kind for kind in kinds if kind != "readout"]
    entry_points = []
    if "readout" in kinds:
        entry_points += [
            "# one line per readout: the name that users type, and its class",
            "[project.entry-points.regplug_readouts_v1]",
            f'{names.strategy} = "{names.package}.readout:{names.readout_class}"',
            "",
        ]
    if by_module:
        entry_points += [
            "# the module that lists what else the plugin offers",
            "[project.entry-points.regplug_v1]",
            f'{names.strategy} = "{names.package}.plugin"',
            "",
        ]
    commands = [f"      - run: {_part(kind, 'command', words)}" for kind in kinds]
    return {
        **words,
        "kinds": " and ".join(filter(None, (", ".join(KINDS[kind] for kind in kinds[:-1]), KINDS[kinds[-1]]))),
        "dependencies": '"regplug", "torch>=2.10"' if by_module else '"torch>=2.10"',
        "entry_points": "\n".join(entry_points),
        "sections": "".join(_part(kind, "README", words) for kind in kinds).rstrip(),
        "commands": "".join(commands).rstrip(),
        "hooks": "".join(_part(kind, "plugin", words) for kind in by_module).rstrip(),
    }


def _part(kind: str, what: str, words: Mapping[str, str]) -> str:
    """A kind's part of a file that all kinds share."""
    return Template((TEMPLATES / kind / f"{what}.part").read_text(encoding="utf-8")).substitute(words)


def _files(values: Mapping[str, str], kinds: Sequence[str]) -> Iterable[tuple[Path, str]]:
    """Every file: its path, and its text."""
    for folder in ("common", *kinds):
        for relative, text in _templates(TEMPLATES / folder, Path()):
            if relative.name == "plugin.py.template" and not values["hooks"]:
                continue
            yield Path(Template(str(_target(relative))).substitute(values)), Template(text).substitute(values)


def _templates(folder: Traversable, place: Path) -> Iterator[tuple[Path, str]]:
    """Every template under a folder: its path, and its text."""
    for one in folder.iterdir():
        if one.is_dir():
            yield from _templates(one, place / one.name)
        elif one.name.endswith(".template"):
            yield place / one.name, one.read_text(encoding="utf-8")


def _target(relative: Path) -> Path:
    """The path of a template's file; packaging tools would act on a ``.gitignore`` in regplug's own wheel."""
    places = {"package": "$package", "github": ".github/workflows"}
    parts = [places.get(part, part) for part in relative.with_suffix("").parts]
    return Path(*(".gitignore" if part == "gitignore" else part for part in parts))
