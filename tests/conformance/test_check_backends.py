"""Which export backends a check tries: those of other plugins do not break it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.plugins import installed_with

import regplug
from regplug.conformance import check_readout, subject_of
from regplug.registry.discovery import discover
from regplug.registry.entries import ExportBackendEntry
from regplug.registry.missing_package import missing_package

SIZES = {"num_registers": 2, "hidden_dim": 3}
PLUGIN = """
import pathlib, regplug
pathlib.Path(r"{canary}").write_text("imported")

@regplug.hookimpl
def regplug_readouts():
    return [regplug.ReadoutEntry("{name}-last", "{name}_models:Last")]

@regplug.hookimpl
def regplug_export_backends():
    return [regplug.ExportBackendEntry("{name}-programs", "{name}_programs:Backend")]
"""
MODELS = """
import torch

class Last(torch.nn.Module):
    def __init__(self, hidden_dim: int):
        super().__init__()

    def forward(self, registers):
        return registers[:, -1]
"""


def add(site: Path, name: str, programs: str) -> Path:
    """Write a plugin with a readout and an export backend; returns the file that its import creates."""
    canary = site / f"{name}.imported"
    (site / f"{name}.py").write_text(PLUGIN.format(name=name, canary=canary))
    (site / f"{name}_models.py").write_text(MODELS)
    (site / f"{name}_programs.py").write_text(programs)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[regplug_v1]\nx = {name}\n")
    return canary


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


OWN_BACKEND = """
from regplug.backends.torchscript import TorchScriptBackend

class Backend(TorchScriptBackend):
    def export(self, source):
        [made] = super().export(source)
        return [type(made)("program.shared.pt", made.data, made.properties)]
"""


def test_a_check_uses_the_backend_of_the_readouts_distribution_even_if_another_has_the_same_name(site: Path) -> None:
    for name, programs in (("ownone", OWN_BACKEND), ("rival", "import no_such_runtime")):
        add(site, name, programs)
        module = site / f"{name}.py"
        module.write_text(module.read_text().replace(f'"{name}-programs"', '"shared"'))
    registry = regplug.Registry(discover())
    spec = registry.resolve("ownone:ownone-last", **SIZES)
    assert subject_of(spec, registry=registry).backends == ("aotinductor", "torchscript", "shared")
    mean = registry.resolve("mean", **SIZES)
    assert subject_of(mean, registry=registry).backends == ("aotinductor", "torchscript")
    results = check_readout(spec, registry=registry, backends=["shared"], compiler="eager")
    verdicts = {one.check: one.verdict for one in results}
    assert (verdicts["program[shared]"], verdicts["program-refuses[shared]"]) == ("passed", "passed")


def test_a_registry_of_some_plugins_imports_no_other(site: Path) -> None:
    add(site, "ownthree", "")
    foreign = add(site, "foreignthree", "")
    registry = regplug.Registry(discover()).only("regplug", "ownthree", "no-such-plugin")
    assert [record.distribution for record in registry.plugins()] == ["ownthree", "regplug"]
    assert registry.resolve("ownthree-last", **SIZES).cond_dim == 3
    assert not foreign.exists()


@pytest.mark.parametrize(
    ("programs", "verdict", "detail"),
    [
        (
            "import no_such_runtime",
            "not applicable",
            "export backend 'foreigntwo-programs' wants the package 'no_such_runtime', which is not installed; "
            "install it to use this",
        ),
        ("import json.no_such_part", "failed", "ModuleNotFoundError: No module named 'json.no_such_part'"),
        ("import foreigntwo_programs_lost; Backend = 1", "not applicable", "'foreigntwo_programs_lost'"),
        ("raise ImportError('no_such_runtime')", "failed", "ImportError: no_such_runtime"),
    ],
)
def test_a_named_backend_is_not_applicable_if_its_package_is_not_installed(
    site: Path, programs: str, verdict: str, detail: str
) -> None:
    add(site, "foreigntwo", programs)
    registry = regplug.Registry(discover())
    results = check_readout(
        registry.resolve("mean", **SIZES), registry=registry, backends=["foreigntwo-programs"], compiler="eager"
    )
    rows = {one.check: one for one in results}
    assert rows["program[foreigntwo-programs]"].verdict == verdict
    assert detail in rows["program[foreigntwo-programs]"].detail
    assert rows["program-refuses[foreigntwo-programs]"].verdict == "not applicable"
    assert rows["threads"].verdict == "passed"


def test_a_readout_that_needs_a_missing_package_as_it_is_exported_still_fails(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Backend:
        def __init__(self) -> None:
            import no_such_runtime  # noqa: F401

    registry = installed_with(ExportBackendEntry("lazy-programs", Backend))
    results = check_readout(
        registry.resolve("mean", **SIZES), registry=registry, backends=["lazy-programs"], compiler="eager"
    )
    [row] = [one for one in results if one.check == "program[lazy-programs]"]
    assert row.verdict == "failed"


def _raised(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except BaseException as error:
        return error
    raise RuntimeError("nothing was raised")


def test_a_missing_package_is_not_confused_with_a_missing_part_or_a_module_of_the_plugin() -> None:
    gone = _raised(lambda: __import__("no_such_runtime.part"))
    assert missing_package(gone) == "no_such_runtime"
    assert missing_package(gone, {"no_such_runtime"}) is None
    assert missing_package(_raised(lambda: __import__("json.no_such_part"))) is None
    assert missing_package(ImportError("no_such_runtime")) is None
