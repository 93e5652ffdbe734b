"""The plugins in this repository use what every plugin may use: public names, and the documented doors."""

import ast
from pathlib import Path

import pytest

import regplug

ROOT = Path(__file__).resolve().parents[2]
DOORS = ("backends", "conformance", "nn")  # packages with an __all__ of their own
SOURCES = sorted(path for path in (ROOT / "plugins").glob("*/regplug_*/**/*.py") if "__pycache__" not in path.parts)


def internal_names(source: str) -> list[str]:
    """The names that a plugin's source imports from regplug and that are not public."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("regplug.")]
        elif isinstance(node, ast.ImportFrom) and not node.level and f"{node.module}.".startswith("regplug."):
            _, _, door = str(node.module).partition(".")
            public = regplug.__all__ if not door else public_names(door)
            found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in public]
    return found


def public_names(door: str) -> list[str]:
    if door not in DOORS:
        return []
    module = __import__(f"regplug.{door}", fromlist=["__all__"])
    return list(getattr(module, "__all__", ()))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_plugin_imports_public_names_only(path: Path) -> None:
    assert internal_names(path.read_text()) == []


def test_every_plugin_is_looked_at() -> None:
    plugins = {path.name for path in (ROOT / "plugins").glob("regplug-*")}
    assert {path.relative_to(ROOT / "plugins").parts[0] for path in SOURCES} == plugins


@pytest.mark.parametrize(
    ("source", "internal"),
    [
        ("import regplug\nfrom regplug import SpecError\nfrom regplug.nn import check_sizes", []),
        ("from regplug_zoo.sizes import gem_width\nfrom .plugin import READOUTS", []),
        ("from regplug.errors import SpecError", ["regplug.errors.SpecError"]),
        ("def f():\n    from regplug.nn import pair", ["regplug.nn.pair"]),
        ("from regplug import errors", ["regplug.errors"]),
        ("import regplug.nn.film as film", ["regplug.nn.film"]),
    ],
)
def test_an_internal_name_is_seen(source: str, internal: list[str]) -> None:
    assert internal_names(source) == internal
