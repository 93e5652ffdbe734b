"""The shape of the package: imports run one way, files stay small, nothing heavy is imported early."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "regplug"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# what listing needs; none of it may import torch, numpy or rich when it is imported
LIGHT = ["errors", "layout", "entries", "options", "widths", "spec", "hookspecs", "discovery", "staging", "registry"]
LIGHT += ["readouts/sizes", "distributions", "missing", "torch_guard", "version"]
LIGHT += [
    "installed",
    "builtin",
    "strict",
    "folder",
    "manifest",
    "agreement",
    "reading",
    "writing",
    "lone_files",
    "mistaken",
    "place",
    "promises",
    "temporary",
    "durable",
    "safetensors_header",
    "weights",
    "printing",
    "choices",
    "cpu",
    "cache",
    "formula",
    "audit_commands",
    "bench_commands",
    "bench_page",
    "bench_report",
    "bundle_commands",
    "cache_commands",
    "cache_place",
    "check_commands",
    "deprecation",
    "description",
    "option_values",
    "stored_values",
    "type_hints",
    "doctor_commands",
    "import_commands",
    "info_commands",
    "import_lock",
    "kept_host",
    "foreign",
    "forking",
    "lazy_group",
    "name_index",
    "naming",
    "new_commands",
    "sign_commands",
    "streams",
    "tracebacks",
    "signing",
    "conformance/__init__",
    "conformance/check",
    "conformance/junit",
    "conformance/named",
    "conformance/placement",
    "conformance/pytest_plugin",
    "doctor/metadata",
    "doctor/processes",
    "cli",
]


def imports(path: Path, only_top: bool = False) -> set[str]:
    """The regplug modules and the packages that a file imports."""
    tree = ast.parse(path.read_text())
    found = set()
    nodes = ast.iter_child_nodes(tree) if only_top else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_imports_run_in_one_direction_lazy_ones_too():
    graph = {name: imports(path) & set(MODULES) for name, path in MODULES.items()}
    doors = {"regplug", "regplug.conformance"}  # their names are loaded when they are first used
    graph = {name: found - doors - {name} for name, found in graph.items() if name not in doors}
    assert sum(map(len, graph.values())) > 50
    assert cycle_in(graph) == []


def test_the_check_for_cycles_sees_one():
    assert cycle_in({"a": {"b"}, "b": {"a"}})


@pytest.mark.parametrize("module", LIGHT)
def test_what_listing_needs_imports_nothing_heavy(module):
    heavy = {name.split(".")[0] for name in imports(PACKAGE / f"{module}.py", only_top=True)}
    assert not heavy & {"torch", "numpy", "safetensors", "rich"}


def test_the_package_is_light_as_it_is_imported(run_python):
    done = run_python("import regplug, sys; print('torch' in sys.modules, 'pluggy' in sys.modules); regplug.create")
    assert done.stdout.split() == ["False", "False"]


def test_no_public_function_bears_the_name_of_a_module_beside_it():
    import regplug

    assert not {f"regplug.{name}" for name in regplug.__all__} & set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_small_and_raises_instead_of_asserting(name):
    text = MODULES[name].read_text()
    nodes = list(ast.walk(ast.parse(text)))
    assert text.count("\n") <= 330
    assert not [node.lineno for node in nodes if isinstance(node, ast.Assert)]
    assert not [node.lineno for node in nodes if isinstance(node, ast.ExceptHandler) and node.type is None]
    assert name.rpartition(".")[2] not in {"utils", "core", "common", "helpers"}


@pytest.mark.parametrize("header", sorted((PACKAGE / "include" / "regplug").glob("*.h")), ids=lambda path: path.name)
def test_a_header_is_small(header):
    assert header.read_text().count("\n") <= 250


def test_private_torch_names_are_in_two_files():
    private = re.compile(r"torch(\.\w+)*\._(?!_)|_orig_mod")
    found = {name for name, path in MODULES.items() if private.search(path.read_text())}
    assert found == {"regplug.torch_private", "regplug.inductor_private"}


def test_saying_what_a_bundle_or_a_weights_file_is_needs_no_torch(run_python, tmp_path):
    import regplug

    spec = regplug.resolve("mean", num_registers=2, hidden_dim=3)
    regplug.export(spec, spec.build(), tmp_path / "b")
    for path in (tmp_path / "b", tmp_path / "b" / "weights.safetensors"):
        done = run_python(
            f"import sys, atexit; sys.argv = ['regplug', 'info', {str(path)!r}]\n"
            "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
            "from regplug.cli import answer; sys.exit(answer())"
        )
        assert (done.returncode, done.stderr.strip()) == (0, "False")
