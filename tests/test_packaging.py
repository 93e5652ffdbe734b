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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(command, check=True)
    [path] = folder.iterdir()
    return path


def test_the_wheel_holds_exactly_the_package(wheel):
    info = f"regplug-{regplug.__version__}.dist-info"
    package = [path for path in (ROOT / "regplug").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    suffixes = {
        ".py",
        ".pyi",
        ".typed",
        ".csv",
        ".h",
        ".cpp",
        ".inc",
        ".in",
        ".map",
        ".cmake",
        ".txt",
        ".template",
        ".part",
    }
    assert {path.suffix for path in package} == suffixes
    assert set(zipfile.ZipFile(wheel).namelist()) == {
        *(str(path.relative_to(ROOT)) for path in package),
        *(f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")),
    }


def test_the_wheel_is_pure_python(wheel):
    assert wheel.name == f"regplug-{regplug.__version__}-py3-none-any.whl"


def test_the_version_is_the_one_in_the_header(wheel):
    text = zipfile.ZipFile(wheel).read("regplug/include/regplug/version.h").decode()
    assert re.search(r'#define REGPLUG_VERSION "(.+)"', text)[1] == regplug.__version__ == version("regplug")


def test_the_bundle_format_is_the_same_in_both_languages():
    from regplug.format.manifest import BUNDLE_FORMATS

    text = (ROOT / "regplug" / "include" / "regplug" / "version.h").read_text()
    assert int(re.search(r"#define REGPLUG_BUNDLE_FORMAT (\d+)", text)[1]) == BUNDLE_FORMATS[-1]


def test_the_core_depends_on_five_packages_and_no_other(wheel):
    archive = zipfile.ZipFile(wheel)
    [metadata] = [name for name in archive.namelist() if name.endswith("METADATA")]
    required = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist")
    core = {re.match(r"[A-Za-z0-9-]+", line)[0] for line in required if "extra ==" not in line}
    assert core == {"torch", "pluggy", "safetensors", "click", "rich"}
    # safetensors needs numpy to write torch's tensors, and requires it in an extra only
    assert any(line.startswith("safetensors[numpy]") for line in required)


@pytest.mark.parametrize(
    ("extra", "packages"),
    [("sign", {"model-signing", "pyopenssl"}), ("images", {"pillow"}), ("parquet", {"pyarrow"})],
)
def test_what_signs_bundles_and_what_reads_images_and_tables_are_extras(wheel, extra, packages):
    archive = zipfile.ZipFile(wheel)
    [metadata] = [name for name in archive.namelist() if name.endswith("METADATA")]
    required = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist")
    lines = [line for line in required if f"extra == '{extra}'" in line.replace('"', "'")]
    assert {re.match(r"[A-Za-z0-9-]+", line)[0] for line in lines} == packages


def test_these_tests_run_on_the_installed_package_not_on_the_sources():
    assert Path(regplug.__file__).parent != ROOT / "regplug"
