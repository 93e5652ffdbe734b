"""Writes the package of a new plugin: a readout, its entry point, its tests."""

from __future__ import annotations

import keyword
import re
import secrets
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import Template

from regplug import builtin
from regplug.errors import ExportError, SpecError

TEMPLATES = Path(__file__).resolve().parent / "share" / "new"
# stricter than what an index takes: one spelling, good for a shell, an import and a URL
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
AFFIXES = re.compile(r"^regplug-|-(readouts?|plugin|regplug)$")


@dataclass(frozen=True)
class Names:
    """What the files of a new plugin call things."""

    distribution: str
    package: str
    strategy: str
    readout_class: str


def names_of(path: Path, strategy: str | None = None) -> Names:
    """The names that follow from the folder's.

    Args:
        path: The folder to make; its last part is the distribution's name.
        strategy: The readout's name; from the distribution's when None.

    Raises:
        SpecError: A name cannot be used: other characters, a built-in strategy, a package that exists.
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


def write_plugin(path: Path, names: Names) -> list[Path]:
    """Write the package, all of it or nothing; gives its files, relative to ``path``.

    Raises:
        ExportError: Something stands there, or the system refuses; nothing was changed.
    """
    check_empty(path)
    beside = path.parent / f".{path.name}.regplug-{secrets.token_hex(6)}"
    written = []
    try:
        for template in _templates():
            target = Path(Template(str(_target(template))).substitute(vars(names)))
            (beside / target).parent.mkdir(parents=True, exist_ok=True)
            text = Template(template.read_text(encoding="utf-8")).substitute(vars(names))
            (beside / target).write_text(text, encoding="utf-8")
            written.append(target)
        beside.rename(path)  # never replaces a folder that holds something, one that came just now included
    except OSError as error:
        raise ExportError(f"plugin {path}: cannot be written: {error.strerror}; nothing was changed.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return written


def check_empty(path: Path) -> None:
    """Refuse a place where anything but an empty folder stands.

    Raises:
        ExportError: Something does.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ExportError(f"plugin {path}: expected a new folder, got a file that exists; it is kept.")
    if path.is_dir() and (held := sorted(entry.name for entry in path.iterdir())):
        raise ExportError(f"plugin {path}: expected a new or empty folder, got one that holds {', '.join(held[:3])}.")


def _check_name(word: str, name: str, example: str) -> None:
    if not NAME.fullmatch(name):
        raise SpecError(f"{word}: expected lower-case letters, digits and '-', as in {example!r}, got {name!r}.")


def _templates() -> Iterable[Path]:
    return sorted(TEMPLATES.rglob("*.template"))


def _target(template: Path) -> Path:
    """Where a template's file belongs; packaging tools would look at ``.gitignore`` and the like in our own wheel."""
    relative = template.relative_to(TEMPLATES).with_suffix("")
    places = {"package": "$package", "github": ".github/workflows"}
    parts = [places.get(part, part) for part in relative.parts]
    return Path(*(".gitignore" if part == "gitignore" else part for part in parts))
