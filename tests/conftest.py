"""Fixtures that install real plugin packages, and run Python beside them as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings
from support.commands import run_command
from support.distributions import write_distribution
from support.environment import clean_environment

# a shared machine is slow at times, and a slow answer is no wrong one
settings.register_profile("regplug", deadline=None)
settings.load_profile("regplug")


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests compile each program once, all processes that run them together, and leave the user's cache alone."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGPLUG_CACHE_DIR", str(shared / "cache"))
        yield


@pytest.fixture(scope="session")
def install_plugin(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Install a package into a new folder, and return that folder."""

    def install(
        name: str, modules: Mapping[str, str], entry_points: Mapping[str, Mapping[str, str]], version: str = "1.0"
    ) -> Path:
        folder = tmp_path_factory.mktemp(f"{name}-site")
        write_distribution(folder, name, modules, entry_points, version=version)
        return folder

    return install


@pytest.fixture(scope="session")
def run_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -c`` in an empty folder, with some folders on PYTHONPATH; regplug is the installed one."""

    def run(
        code: str, path_folders: Iterable[Path] = (), env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        own = {"REGPLUG_CACHE_DIR": os.environ["REGPLUG_CACHE_DIR"]}
        own["PYTHONPATH"] = os.pathsep.join(map(str, path_folders))
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path_factory.mktemp("cwd"),
            env=clean_environment() | own | dict(env or {}),
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def run() -> Callable[..., tuple[int, str, str]]:
    """Run ``regplug`` in this process; gives its exit code, its stdout and its stderr."""
    return run_command
