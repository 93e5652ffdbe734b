"""Bundles that several tests read."""

import pytest
import torch
from support.readouts import SIZES

import regplug


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A folder with the bundles ``readout`` and ``conditioner``, of the same strategy."""
    folder = tmp_path_factory.mktemp("bundles")
    spec = regplug.resolve("compress-concat", **SIZES, compressed_dim=6)
    torch.manual_seed(0)
    film = regplug.pair(spec, regplug.KernelFiLMGenerator, kernel_hidden_dim=5, num_film_layers=2)
    layout = regplug.TokenLayout(**SIZES, start=1)
    regplug.export(spec, spec.build(), folder / "readout")
    regplug.export(spec, regplug.Conditioner(layout, spec.build(), film), folder / "conditioner")
    return folder
