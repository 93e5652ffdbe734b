"""regplug without its installed metadata: copied into a folder, and in one zip file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipapp
from collections.abc import Callable
from pathlib import Path

import pytest
from support.battery import in_battery
from support.strategies import BUILT_IN

import regplug
from regplug.commands.new.scaffold import KINDS, names_of, write_plugin

Run = Callable[..., subprocess.CompletedProcess[str]]
WORD = "regplug runs without its own metadata, as in a frozen application; plugins are found by theirs"


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed packages, except regplug and its plugins."""
    folder = tmp_path_factory.mktemp("others")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "regplug" not in path.name:
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module", params=["folder", "zip"])
def frozen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, others: Path) -> Run:
    """The command of a copy without metadata."""
    folder = tmp_path_factory.mktemp("frozen")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(regplug.__file__).parent, folder / "regplug", ignore=ignored)
    words, path = ["-m", "regplug"], [folder, others]
    if request.param == "zip":
        archive = tmp_path_factory.mktemp("app") / "regplug.pyz"
        zipapp.create_archive(folder, archive, main="regplug.commands.main:main")
        words, path = [str(archive)], [others]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        # -S: without the site-packages of this interpreter, which have regplug's metadata
        command = [sys.executable, "-S", *words, *arguments]
        return subprocess.run(
            command, env=variables, cwd=folder.parent, capture_output=True, text=True, check=False, timeout=120
        )

    return run


def test_the_built_ins_and_the_version_need_no_metadata_and_one_sentence_says_what_plugins_need(frozen: Run) -> None:
    assert frozen("--version").stdout == f"regplug, version {regplug.__version__}\n"
    listed = json.loads(frozen("list", "--json").stdout)
    assert {one["name"] for one in listed["strategies"]} == set(BUILT_IN)
    assert {one["name"] for one in listed["export_backends"]} == {"aotinductor", "torchscript"}
    assert "kernel-film" in {one["name"] for one in listed["film_generators"]}
    [own] = listed["plugins"]
    assert (own["version"], own["status"]) == (regplug.__version__, "ok")
    assert own["notes"][0].startswith(WORD)
    unknown = frozen("cond-dim", "last", "--num-registers", "2", "--hidden-dim", "3")
    assert unknown.returncode == 2
    assert WORD in unknown.stderr


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [*in_battery("folder"), "zip"], indirect=True)
def test_a_readout_is_exported_and_verified_there(frozen: Run, tmp_path: Path) -> None:
    sizes = ["--num-registers", "2", "--hidden-dim", "3"]
    done = frozen("export", "concat", *sizes, "--backend", "torchscript", "-o", str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr
    packages = json.loads((tmp_path / "b" / "manifest.json").read_text())["provenance"]["packages"]
    assert packages == {"regplug": regplug.__version__}
    assert frozen("verify", str(tmp_path / "b")).returncode == 0


def test_cmakes_folder_is_printed_or_refused_in_an_archive(frozen: Run) -> None:
    for command in ("cmake-dir", "include-dir"):
        done = frozen(command)
        if done.returncode == 0:
            assert Path(done.stdout.strip()).is_dir()
        else:
            assert ".pyz/regplug" in done.stderr
            assert "expected a folder, got a path in an archive; unpack regplug, or install it." in done.stderr


def test_a_new_plugin_is_the_same_as_from_an_installed_regplug(frozen: Run, tmp_path: Path) -> None:
    done = frozen("new", str(tmp_path / "acme"), *(f"--{kind}" for kind in KINDS))
    assert done.returncode == 0, done.stderr
    (tmp_path / "installed").mkdir()
    write_plugin(tmp_path / "installed" / "acme", names_of(Path("acme")), tuple(KINDS))

    def texts(folder: Path) -> dict[Path, str]:
        return {path.relative_to(folder): path.read_text() for path in folder.rglob("*") if path.is_file()}

    assert Path("tests", "test_readout.py") in texts(tmp_path / "acme")
    assert texts(tmp_path / "acme") == texts(tmp_path / "installed" / "acme")
