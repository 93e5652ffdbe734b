"""The wheel: exactly these files, one version, and installed here from it."""

import email
import re
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import regplug

ROOT = Path(__file__).resolve().parent.parent

PYTHON = """
__init__ __main__ agreement attachment audit_commands backbone bench_commands bench_page bench_report benchmark builtin
bundle bundle_commands cache cache_commands cache_place check_commands checkpoint checkpoint_file choices cli compiler
conditioner cost cpu decay deprecation description discovery distributions doctor_commands durable entries errors film
folder foreign forking formula gate golden hookspecs import_commands import_lock importing inductor_folder
inductor_private inferring info_commands information installed kept_host layout lazy_group loading lone_files manifest
missing mistaken name_index naming new_commands nonfinite option_values options origin outline own_keys own_modules
pairing pickle_nesting place printing program program_folder promises python_child reading readout_search rebuilding
registry safetensors_header scaffold selection shards sign_commands signature signing spec staging state_names
stopwatch stored_values streams strict temporary tokens torch_guard torch_private tracebacks traces type_hints
verification version weights weightsfile widths working_directory wrappers writing
audit/__init__ audit/building audit/dataflow audit/inputs audit/network audit/parts audit/pieces
audit/projections audit/sizes audit/tensor_trees audit/verdict audit/wiring
backends/__init__ backends/aotinductor backends/compile_child backends/compiling backends/elf backends/graph
backends/interface backends/model_library backends/reuse backends/torchscript
conformance/__init__ conformance/answers conformance/asking conformance/backbone_building conformance/backbone_reading
conformance/backbone_run conformance/backbone_subject conformance/check conformance/imports conformance/junit
conformance/marks conformance/modes conformance/named conformance/numbers conformance/own_forward
conformance/parametrizing conformance/placement conformance/programs conformance/pytest_plugin conformance/refusals
conformance/run conformance/storing conformance/subject conformance/test_conformance conformance/training
doctor/__init__ doctor/child doctor/diagnosis doctor/environment doctor/examination doctor/findings doctor/metadata
doctor/patches doctor/process_state doctor/processes
readouts/__init__ readouts/attentions readouts/averages readouts/check readouts/concatenations readouts/sizes
""".split()  # noqa: SIM905
HEADERS = """
agreement aoti_shim aotinductor archive aten_handle bundle bytes checks cpu cpuid dtype error fields folder golden
guard held_weights json manifest message mistaken model_library numbers read_manifest safetensors sha256 shared_object
tensor tolerances torchscript version view weights write_safetensors writing
""".split()  # noqa: SIM905
NEW = """
backbone/README.part backbone/command.part backbone/package/backbone.py.template backbone/plugin.part
backbone/tests/test_backbone.py.template backend/README.part backend/command.part backend/package/backend.py.template
backend/plugin.part backend/tests/test_backend.py.template common/README.md.template common/github/test.yml.template
common/gitignore.template common/package/__init__.py.template common/package/plugin.py.template
common/pyproject.toml.template film/README.part film/command.part film/package/film.py.template film/plugin.part
film/tests/test_film.py.template readout/README.part readout/command.part readout/package/readout.py.template
readout/tests/test_readout.py.template
""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(command, check=True)
    [path] = folder.iterdir()
    return path


def test_the_wheel_holds_exactly_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"regplug-{regplug.__version__}.dist-info"
    assert names == {
        *(f"regplug/{name}.py" for name in PYTHON),
        *(f"regplug/include/regplug/{name}.h" for name in HEADERS),
        "regplug/share/cmake/regplug/regplug-config.cmake",
        "regplug/share/cmake/regplug/regplug-config-version.cmake",
        *(f"regplug/share/new/{name}" for name in NEW),
        "regplug/share/regplug-run/CMakeLists.txt",
        "regplug/share/regplug-run/main.cpp",
        "regplug/py.typed",
        *(f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")),
    }


def test_the_wheel_is_pure_python(wheel):
    assert wheel.name == f"regplug-{regplug.__version__}-py3-none-any.whl"


def test_the_version_is_the_one_in_the_header(wheel):
    text = zipfile.ZipFile(wheel).read("regplug/include/regplug/version.h").decode()
    assert re.search(r'#define REGPLUG_VERSION "(.+)"', text)[1] == regplug.__version__ == version("regplug")


def test_the_bundle_format_is_the_same_in_both_languages():
    from regplug.manifest import BUNDLE_FORMAT

    text = (ROOT / "regplug" / "include" / "regplug" / "version.h").read_text()
    assert int(re.search(r"#define REGPLUG_BUNDLE_FORMAT (\d+)", text)[1]) == BUNDLE_FORMAT


def test_the_core_depends_on_five_packages_and_no_other(wheel):
    archive = zipfile.ZipFile(wheel)
    [metadata] = [name for name in archive.namelist() if name.endswith("METADATA")]
    required = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist")
    core = {re.match(r"[A-Za-z0-9-]+", line)[0] for line in required if "extra ==" not in line}
    assert core == {"torch", "pluggy", "safetensors", "click", "rich"}
    # safetensors writes torch's tensors by way of numpy, and asks for it in an extra only
    assert any(line.startswith("safetensors[numpy]") for line in required)


def test_what_signs_bundles_is_an_extra(wheel):
    archive = zipfile.ZipFile(wheel)
    [metadata] = [name for name in archive.namelist() if name.endswith("METADATA")]
    required = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist")
    extra = {re.match(r"[A-Za-z0-9-]+", line)[0] for line in required if "extra == 'sign'" in line.replace('"', "'")}
    assert extra == {"model-signing", "pyopenssl"}


def test_these_tests_run_on_the_installed_package_not_on_the_sources():
    assert Path(regplug.__file__).parent != ROOT / "regplug"
