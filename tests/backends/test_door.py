"""``regplug.backends`` has all that an export backend imports."""

import ast
import re
from pathlib import Path

import pytest

import regplug.backends

ROOT = Path(__file__).parents[2]
ONNX_TESTS = sorted((ROOT / "plugins" / "regplug-onnx" / "tests").glob("*.py"))
TEMPLATE = sorted((ROOT / "regplug" / "commands" / "new" / "template" / "backend").rglob("*.template"))
DOORS = {"regplug", "regplug.backends", "regplug.conformance"}


def internal_imports(source: str) -> set[str]:
    """The modules of regplug that some code imports, and that are not for plugins."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return {name for name in found if name.split(".")[0] == "regplug"} - DOORS


@pytest.mark.parametrize("path", [*ONNX_TESTS, *TEMPLATE], ids=lambda path: path.name)
def test_a_backend_outside_regplug_imports_only_what_is_offered_to_it(path):
    assert internal_imports(re.sub(r"\$\{?\w+\}?", "placeholder", path.read_text())) == set()


def test_an_internal_import_is_seen():
    code = "import torch, regplug\ndef f():\n    from regplug.errors import clip"
    assert internal_imports(code) == {"regplug.errors"}


@pytest.mark.parametrize("name", regplug.backends.__all__)
def test_every_name_that_is_offered_exists(name):
    assert getattr(regplug.backends, name) is not None


def test_a_name_that_is_not_offered_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'regplug\.backends' has no attribute 'compile'$"):
        regplug.backends.compile  # noqa: B018


def test_the_documented_modules_stay_importable():
    from regplug.backends.graph import export_graph
    from regplug.backends.interface import ExportBackend
    from regplug.backends.reuse import reused

    offered = regplug.backends.export_graph, regplug.backends.ExportBackend, regplug.backends.reused
    assert (export_graph, ExportBackend, reused) == offered


def test_what_listing_needs_of_the_folder_imports_no_torch(run_python):
    code = "import sys, regplug.backends.cache, regplug.backends.cpu; print('torch' in sys.modules)"
    assert run_python(code).stdout == "False\n"
