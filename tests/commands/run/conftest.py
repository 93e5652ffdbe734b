from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.real_runs import run_to_end, write_inputs
from support.token_files import D, R

import regplug


def exported(folder: Path, name: str, **options: Any) -> tuple[Path, torch.nn.Module]:
    """A bundle of a readout with random weights, and the readout."""
    torch.manual_seed(0)
    spec = regplug.resolve(name, num_registers=R, hidden_dim=D, **options)
    module = spec.build()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    regplug.export(spec, module, folder)
    return folder, module.eval()


@pytest.fixture(scope="session")
def pool(tmp_path_factory):
    """A bundle of ``pool``, and the readout."""
    return exported(tmp_path_factory.mktemp("bundles") / "pool", "pool")


@pytest.fixture(scope="session")
def concat(tmp_path_factory):
    """A bundle of ``concat``, of another width, and the readout."""
    return exported(tmp_path_factory.mktemp("bundles") / "concat", "concat")


MEDDLING = """
import os, signal
from torch import nn
class Meddle(nn.Module):
    def __init__(self, hidden_dim: int):
        super().__init__()
        self.out_dim = hidden_dim
    def forward(self, registers):
        exec(os.environ.get("MEDDLE", ""))
        return registers.mean(1)
"""
OFFER = """
import regplug
@regplug.hookimpl
def regplug_readouts():
    return [regplug.ReadoutEntry("meddle", "meddling_models:Meddle")]
"""


@dataclass(frozen=True)
class Meddling:
    """A bundle whose readout runs the code in the variable ``MEDDLE`` with each batch, and its plugin's folder."""

    bundle: Path
    site: Path


@pytest.fixture(scope="session")
def meddling_bundle(tmp_path_factory, install_plugin):
    modules = {"meddling.py": OFFER, "meddling_models.py": MEDDLING}
    site = install_plugin("meddling", modules, {"regplug_v1": {"meddling": "meddling"}})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        registry = regplug.Registry.installed()
        spec = registry.resolve("meddle", hidden_dim=D, num_registers=R)
        folder = tmp_path_factory.mktemp("bundles") / "meddling"
        regplug.export(spec, spec.build(), folder, backends=(), registry=registry)
    return Meddling(folder, site)


@pytest.fixture
def meddling(meddling_bundle, monkeypatch):
    """A function that sets the code, and gives the bundle for a run in this process's workers."""
    monkeypatch.syspath_prepend(str(meddling_bundle.site))

    def begin(code: str) -> Path:
        monkeypatch.setenv("MEDDLE", code)
        return meddling_bundle.bundle

    return begin


@pytest.fixture(scope="session")
def six_files(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs") / "in", files=6, rows=20)


@pytest.fixture(scope="session")
def undisturbed(meddling_bundle, six_files, tmp_path_factory):
    """The results of the six files, by a run in which nothing happened."""
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    given = (meddling_bundle.bundle, six_files, "-o", folder, "--carry", "id")
    ended = run_to_end(*given, env={"PYTHONPATH": str(meddling_bundle.site)})
    assert ended.process.returncode == 0, ended
    return folder
