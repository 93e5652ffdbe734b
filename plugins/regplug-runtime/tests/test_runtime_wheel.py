"""The sdist and the wheel that is built from it."""

from __future__ import annotations

import email
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.environment import clean_environment

import regplug

pytestmark = [pytest.mark.packaging, pytest.mark.compiler]

PLUGIN = Path(__file__).resolve().parents[1]
ROOT = PLUGIN.parents[1]
LIBRARY = "regplug_runtime/libregplug.so.1"
VERSION = regplug.__version__


def test_the_wheel_serves_every_python_on_this_platform(wheel):
    name, version, python, abi, platform = wheel.stem.split("-")
    assert (name, version, python, abi) == ("regplug_runtime", VERSION, "py3", "none")
    assert platform.startswith("linux_")


def test_the_wheel_holds_the_package_and_one_library_of_less_than_five_megabytes(wheel):
    archive = zipfile.ZipFile(wheel)
    package = {f"regplug_runtime/{name}.py" for name in ("__init__", "arrays", "bundle", "errors", "library")}
    info = f"regplug_runtime-{VERSION}.dist-info"
    assert set(archive.namelist()) == {
        *package,
        LIBRARY,
        "regplug_runtime/py.typed",
        *(f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/THIRD_PARTY.md")),
    }
    assert sum(entry.file_size for entry in archive.infolist()) < 5_000_000


def test_it_depends_on_numpy_alone(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = email.message_from_bytes(archive.read(f"regplug_runtime-{VERSION}.dist-info/METADATA"))
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert required == ["numpy>=1.24"]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    code = f"from scikit_build_core.build import build_sdist; build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=PLUGIN, check=True)
    [path] = folder.glob("*.tar.gz")
    return path


def test_the_sdist_holds_the_sources_of_the_library(sdist):
    shared = [
        ROOT / "regplug" / "include",
        *(ROOT / "regplug" / "share" / name for name in ("cmake", "regplug-runtime")),
    ]
    files = [path for folder in shared for path in folder.rglob("*") if path.is_file()]
    with tarfile.open(sdist) as archive:
        names = set(archive.getnames())
    assert {f"regplug_runtime-{VERSION}/{path.relative_to(ROOT)}" for path in files} <= names


@pytest.mark.torture
def test_the_sdist_alone_makes_the_same_wheel(sdist, wheel, tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path]
    subprocess.run([*command, sdist], check=True, cwd=tmp_path, env=clean_environment())
    [made] = tmp_path.glob("*.whl")
    assert made.name == wheel.name
    assert zipfile.ZipFile(made).namelist() == zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope="module")
def library(wheel, tmp_path_factory):
    return zipfile.ZipFile(wheel).extract(LIBRARY, tmp_path_factory.mktemp("library"))


def listing(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_library_needs_no_cpp_library(library):
    lines = [line for line in listing("readelf", "--dynamic", library).splitlines() if "(NEEDED)" in line]
    needed = {line.partition("[")[2].partition(".so")[0] for line in lines}
    assert needed <= {"libc", "libm", "libgcc_s", "ld-linux-x86-64", "ld-linux-aarch64"}
    assert "libgcc_s" in needed  # a second one inside would not see the exceptions of programs


def test_the_library_shows_its_c_interface_alone_and_is_stripped(library):
    shown = {line.split()[-1].partition("@")[0] for line in listing("nm", "-D", "--defined-only", library).splitlines()}
    assert "regplug_open" in shown
    assert all(name.startswith("regplug_") for name in shown - {"REGPLUG_1"})
    assert ".symtab" not in listing("readelf", "--sections", "--wide", library)
