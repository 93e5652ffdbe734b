"""Fixtures that install plugins and run Python and ``regplug`` as a user does."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from support.commands import run_command
from support.distributions import write_distribution
from support.environment import clean_environment
from support.forked_python import ForkedPython
from support.program_cache import program_cache

# a busy machine is slow, and a slow answer is not wrong
settings.register_profile("regplug", deadline=None)
settings.load_profile("regplug")


def pytest_collection_finish() -> None:
    """Exempt the collected tests from garbage collection, each of which would look at all of their objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """As ``tmp_path``, however long TMPDIR is: programs compare whole messages, and a long path would clip them."""
    with tempfile.TemporaryDirectory(prefix="regplug-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache is left alone: a link to one in build/, which all processes and later runs share."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with suppress(FileExistsError):  # another process was faster
        (shared / "cache").symlink_to(program_cache())
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


def environment(path_folders: Iterable[Path], env: Mapping[str, str] | None) -> dict[str, str]:
    """The variables of a process that a test starts."""
    own = {"REGPLUG_CACHE_DIR": os.environ["REGPLUG_CACHE_DIR"]}
    own["PYTHONPATH"] = os.pathsep.join(map(str, path_folders))
    return clean_environment() | own | dict(env or {})


@pytest.fixture(scope="session")
def run_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -c`` in an empty folder, with some folders on PYTHONPATH; regplug is the installed one."""

    def run(
        code: str, path_folders: Iterable[Path] = (), env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path_factory.mktemp("cwd"),
            env=environment(path_folders, env),
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def with_torch() -> Iterator[ForkedPython]:
    """A process that has imported torch and regplug, but no plugin."""
    # torch imports its compiler when a tensor of the meta device is averaged, which takes longer than all the rest
    process = ForkedPython("import torch, torch._dynamo, regplug.bundle.export")
    yield process
    process.close()


@pytest.fixture(scope="session")
def run_with_torch(
    tmp_path_factory: pytest.TempPathFactory, with_torch: ForkedPython
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As ``run_python``, for code that imports torch: a fork, which need not import it again."""

    def run(
        code: str, path_folders: Iterable[Path] = (), env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return with_torch.run(["-c", code], tmp_path_factory.mktemp("cwd"), environment(path_folders, env))

    return run


@pytest.fixture(scope="session")
def run() -> Callable[..., tuple[int, str, str]]:
    """Run ``regplug`` in this process; gives its exit code, its stdout and its stderr."""
    return run_command
