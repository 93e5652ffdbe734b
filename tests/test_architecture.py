"""The shape of the package: imports run one way, files stay small, nothing heavy is imported early."""

import ast
import graphlib
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "regplug"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# a folder imports from those before it; nn and format do not know each other
ORDER = ["errors", "torch_private", "registry", "nn", "format", "backends", "bundle", "conformance", "commands"]
HEAVY = {"torch", "numpy", "safetensors", "rich"}
LIGHT_FOLDERS = {"registry", "format"}
LIGHT = """
backends/__init__ backends/cache backends/cpu backends/python_child backends/child_process backends/compiler
backends/program_folder bundle/__init__ bundle/sign conformance/__init__ conformance/check conformance/junit
conformance/lookup conformance/compare_layout conformance/pytest_plugin nn/__init__ nn/join nn/readouts/__init__
nn/readouts/sizes nn/readouts/join_parts commands/main commands/lazy_group commands/shared_options commands/printing
commands/torch_guard commands/cache commands/check commands/list commands/cond_dim commands/part_option
commands/export commands/verify commands/sign commands/audit/command commands/bench/command commands/bench/page
commands/bench/report commands/doctor/command commands/doctor/metadata commands/import_checkpoint/command
commands/info/command commands/new/command commands/new/scaffold commands/rank/reading/samples
commands/rank/reading/source commands/rank/reading/data commands/rank/reading/token_cache
commands/rank/reading/image_folder commands/extras commands/rank/reading/pictures commands/rank/command
commands/html commands/rank/choices commands/rank/score_files commands/effect/findings commands/effect/options
commands/worker_processes commands/run/addresses commands/run/shard commands/run/parquet_shard commands/run/arrow_shard
commands/run/units commands/run/job commands/run/journal commands/run/journal_lines commands/run/sink
commands/run/mapper commands/run/reading commands/run/status commands/run/arrow_messages commands/run/command
commands/run/run commands/run/results commands/run/local_engine commands/run/ray_engine
commands/run/open_shard commands/run/safetensors_shard
""".split()  # noqa: SIM905


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
    graph = {name: found - {name} for name, found in graph.items()}
    assert sum(map(len, graph.values())) > 50
    assert cycle_in(graph) == []


def test_the_check_for_cycles_sees_one():
    assert cycle_in({"a": {"b"}, "b": {"a"}})


def folder_of(module: str) -> str:
    return module.split(".")[1]


def backward(name: str, found: set[str]) -> set[str]:
    """Those of a module's imports that lead to a folder which is not before its own."""
    own = folder_of(name)
    later = set(ORDER[ORDER.index(own) :]) - {own}
    if own == "format":
        later |= {"nn"}
    return {target for target in found if target.startswith("regplug.") and folder_of(target) in later}


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"regplug", "regplug.__main__"}))
def test_a_folder_imports_only_from_the_folders_before_it(name):
    assert backward(name, imports(MODULES[name])) == set()


@pytest.mark.parametrize("folder", ["backends", "conformance"])
def test_the_public_names_of_a_folder_come_from_it_and_the_folders_before_it(folder):
    found = imports(PACKAGE / folder / "__init__.pyi")
    assert len(found) > 10
    assert backward(f"regplug.{folder}", found) == set()


@pytest.mark.parametrize("package", ["regplug", "regplug.backends", "regplug.conformance"])
def test_each_public_name_is_there_and_an_unknown_one_is_an_attribute_error(package):
    module = importlib.import_module(package)
    assert all(hasattr(module, name) for name in module.__all__)
    assert set(module.__all__) < set(dir(module))
    with pytest.raises(AttributeError, match=rf"^module '{package}' has no attribute 'nonsense'$"):
        _ = module.nonsense


def test_an_import_that_runs_back_is_seen():
    assert backward("regplug.registry.spec", {"regplug.nn.film", "regplug.errors", "torch"}) == {"regplug.nn.film"}
    assert backward("regplug.format.folder", {"regplug.nn.film"}) == {"regplug.nn.film"}


def test_the_top_level_holds_the_folders_in_order_and_nothing_else():
    found = {path.name for path in PACKAGE.iterdir()} - {"__pycache__", "include", "share"}
    modules = {"errors.py", "torch_private.py"}
    assert found == {"__init__.py", "__init__.pyi", "__main__.py", "py.typed", *modules, *ORDER[2:]}


LIGHT_FILES = {path for folder in LIGHT_FOLDERS for path in (PACKAGE / folder).rglob("*.py")}
LIGHT_FILES |= {PACKAGE / f"{name}.py" for name in LIGHT} | {PACKAGE / "errors.py"}


@pytest.mark.parametrize("path", sorted(LIGHT_FILES), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_listing_needs_imports_nothing_heavy(path):
    assert not {name.split(".")[0] for name in imports(path, only_top=True)} & HEAVY


def test_the_help_of_all_commands_imports_nothing_heavy(run_python):
    done = run_python(
        "import sys\nfrom click.testing import CliRunner\nfrom regplug.commands.main import group\n"
        f"print(CliRunner().invoke(group, ['--help']).exit_code, {HEAVY - {'rich'}!r} & {{*sys.modules}})"
    )
    assert done.stdout.strip() == "0 set()", done.stdout + done.stderr


def test_click_is_imported_in_commands_alone():
    assert {folder_of(name) for name, path in MODULES.items() if "click" in imports(path)} == {"commands"}


def test_the_package_is_light_as_it_is_imported(run_python):
    done = run_python("import regplug, sys; print('torch' in sys.modules, 'pluggy' in sys.modules); regplug.create")
    assert done.stdout.split() == ["False", "False"]


def test_no_public_name_is_also_the_name_of_a_module_of_the_package():
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


@pytest.mark.parametrize("header", sorted((PACKAGE / "include").rglob("*.h")), ids=lambda path: path.name)
def test_a_header_is_small(header):
    assert header.read_text().count("\n") <= 250


def test_private_torch_names_are_in_two_files():
    private = re.compile(r"torch(\.\w+)*\._(?!_)|_orig_mod")
    found = {name for name, path in MODULES.items() if private.search(path.read_text())}
    assert found == {"regplug.torch_private", "regplug.backends.inductor_private"}


def test_saying_what_a_bundle_or_a_weights_file_is_needs_no_torch(run_python, tmp_path):
    import regplug

    spec = regplug.resolve("mean", num_registers=2, hidden_dim=3)
    regplug.export(spec, spec.build(), tmp_path / "b")
    for path in (tmp_path / "b", tmp_path / "b" / "weights.safetensors"):
        done = run_python(
            f"import sys, atexit; sys.argv = ['regplug', 'info', {str(path)!r}]\n"
            "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
            "from regplug.commands.main import answer; sys.exit(answer())"
        )
        assert (done.returncode, done.stderr.strip()) == (0, "False")
