from pathlib import Path
from typing import Any

import pytest
import torch
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
