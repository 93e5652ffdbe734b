"""docs/architecture.md names the folders and files that there are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "regplug"
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def rows(page):
    """The first column of the table of folders."""
    return re.findall(r"^\| `(\w+(?:/|\.py))` \|", page, re.MULTILINE)


def test_the_table_lists_the_folders_of_the_package_in_the_order_of_imports():
    shown = [path.name + "/" if path.is_dir() else path.name for path in PACKAGE.iterdir()]
    left_out = {"__init__.py", "__init__.pyi", "__main__.py", "py.typed", "__pycache__/"}
    assert sorted(rows(PAGE)) == sorted(set(shown) - left_out)
    order = [name.removesuffix("/").removesuffix(".py") for name in rows(PAGE)]
    assert order[:9] == [
        "errors", "torch_private", "registry", "nn", "format", "backends", "bundle", "conformance", "commands",
    ]  # fmt: skip


def test_a_folder_that_is_not_in_the_table_is_seen():
    assert "registry/" not in rows(PAGE.replace("| `registry/` |", "| `registri/` |"))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:[a-z_]+/)+[a-z_]+\.(?:py|h|md)\b", PAGE))))
def test_a_file_that_the_page_names_exists(path):
    assert (ROOT / path).exists() or (PACKAGE / path).exists()
