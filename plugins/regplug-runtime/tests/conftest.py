"""Bundles, and a Python that has this package's wheel and NumPy, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support.consumer import conditioner, readout
from support.environment import clean_environment
from support.program_cache import program_cache

import regplug

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_run() -> Iterator[None]:
    """The programs that regplug's own tests compile, too, are compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGPLUG_CACHE_DIR", str(program_cache()))
        yield


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The wheel that `make` builds and installs."""
    found = list((ROOT / "build" / "wheels").glob("regplug_runtime-*.whl"))
    assert len(found) == 1, "run `make .venv/installed`, which builds the wheel"
    return found[0]


def site_packages(folder: Path) -> Path:
    """Where the packages of a virtual environment are."""
    return folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and NumPy."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    site = site_packages(folder)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(command, check=True)
    link_package("numpy", site)
    return folder


def link_package(name: str, site: Path) -> None:
    """Make an installed package importable from another folder, without the network."""
    found = find_spec(name)
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    for path in (package, package.with_name(f"{name}.libs")):
        if path.exists():
            (site / path.name).symlink_to(path)


@pytest.fixture(scope="session")
def clean_python(environment: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program in that environment. It must succeed, unless ``check`` is false."""

    def run(code: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [environment / "bin" / "python", "-W", "error", "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A readout's bundle."""
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    regplug.export(*readout("compress-concat"), folder, backends=["torchscript", "aotinductor"])
    return folder


@pytest.fixture(scope="session")
def film_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditioner's bundle."""
    folder = tmp_path_factory.mktemp("bundle") / "film"
    regplug.export(*conditioner("prefix"), folder, backends=["aotinductor"])
    return folder


@pytest.fixture(scope="session")
def bfloat16_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A readout's bundle in bfloat16."""
    spec, module = readout("compress-concat")
    folder = tmp_path_factory.mktemp("bundle") / "bfloat16"
    regplug.export(spec, module.to(torch.bfloat16), folder, backends=["aotinductor"])
    return folder
