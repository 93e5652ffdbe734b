"""Fixtures that install real plugin packages, and run Python beside them as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

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
    """Write a package, install it by pip into a fresh folder, and return that folder."""

    def install(
        name: str, modules: Mapping[str, str], entry_points: Mapping[str, Mapping[str, str]], version: str = "1.0"
    ) -> Path:
        source = tmp_path_factory.mktemp(f"{name}-source")
        for path, text in modules.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_text(text)
        # JSON strings and lists are TOML strings and lists too
        lines = [
            "[build-system]",
            'requires = ["hatchling"]',
            'build-backend = "hatchling.build"',
            "[project]",
            f"name = {json.dumps(name)}",
            f"version = {json.dumps(version)}",
            "[tool.hatch.build.targets.wheel]",
            f"only-include = {json.dumps(sorted(modules))}",
            "bypass-selection = true",  # a distribution may bring entry points and no module of its own
        ]
        for group, points in entry_points.items():
            lines += [f"[project.entry-points.{group}]"]
            lines += [f"{json.dumps(point)} = {json.dumps(value)}" for point, value in points.items()]
        (source / "pyproject.toml").write_text("\n".join(lines) + "\n")
        folder = tmp_path_factory.mktemp(f"{name}-site")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-deps", "--no-build-isolation", "--target", str(folder), str(source)]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return folder

    return install


@pytest.fixture(scope="session")
def run_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -c`` in an empty folder, with some folders on PYTHONPATH; regplug is the installed one."""

    def run(
        code: str, path_folders: Iterable[Path] = (), env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        inherited = {
            word: value for word, value in os.environ.items() if not word.startswith(("PYTHON", "REGPLUG_", "COV_"))
        }
        inherited["REGPLUG_CACHE_DIR"] = os.environ["REGPLUG_CACHE_DIR"]
        variables = inherited | {"PYTHONPATH": os.pathsep.join(map(str, path_folders))} | dict(env or {})
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path_factory.mktemp("cwd"),
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
