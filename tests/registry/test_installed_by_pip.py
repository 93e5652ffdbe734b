"""What pip writes of a distribution is what the tests' own writer writes, in all that regplug reads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from regplug.registry.distributions import Installed

POINTS = {"regplug_readouts_v1": {"attend": "acme_models.heads:Attend"}, "regplug_v1": {"acme": "acme_plugin"}}
CASES: dict[str, tuple[Mapping[str, str], Mapping[str, Mapping[str, str]], str]] = {
    "Acme_Readouts": ({"acme_models/heads.py": "Attend = 1\n", "acme_plugin.py": ""}, POINTS, "2.3"),
    "only-lines": ({}, {"regplug_readouts_v1": {"latent": "timm.layers:AttentionPoolLatent"}}, "1.0"),
}


def install_by_pip(
    source: Path, name: str, modules: Mapping[str, str], points: Mapping[str, Mapping[str, str]], version: str
) -> Path:
    """Build a package with hatchling, and install it by pip into a folder."""
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
        "bypass-selection = true",  # a distribution may have entry points and no module
    ]
    for group, some in points.items():
        lines += [f"[project.entry-points.{group}]", *(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in some.items())]
    (source / "pyproject.toml").write_text("\n".join(lines) + "\n")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--no-build-isolation", "--target", str(source / "site"), str(source)]
    subprocess.run(pip, check=True)
    return source / "site"


def read(site: Path) -> dict[str, Any]:
    """All that regplug reads of the one distribution in a folder."""
    [distribution] = distributions(path=[str(site)])
    found = Installed(distribution)
    return {
        "folder": found.path.name,
        "key": found.key,
        "name": found.name,
        "stated name": found.stated_name,
        "version": found.version,
        "entry points": {(point.group, point.name, point.value) for point in distribution.entry_points},
        "modules": [name for name in ("acme_models", "acme_plugin", "acme", "timm") if found.owns(name)],
        "editable": found.editable_folder(),
        "leftover": found.is_leftover,
    }


@pytest.mark.packaging
@pytest.mark.parametrize("name", CASES)
def test_regplug_reads_the_same_of_what_pip_wrote_and_of_what_the_tests_write(
    name: str, install_plugin: Callable[..., Path], tmp_path: Path
) -> None:
    modules, points, version = CASES[name]
    by_pip = read(install_by_pip(tmp_path, name, modules, points, version))
    assert by_pip == read(install_plugin(name, modules, points, version=version))
    assert by_pip["version"] == version
    assert len(by_pip["entry points"]) == sum(map(len, points.values()))
