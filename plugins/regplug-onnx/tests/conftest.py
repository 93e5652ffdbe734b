from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from support.plugins import registered
from torch import nn

import regplug
from regplug.backends import InputSpec, Program, Source, StoredTensor, TensorSpec


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    # more threads than one are slower for small tensors on a busy machine
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache that is empty at first; several tests of a file export the same program."""
    folder = tmp_path_factory.mktemp("empty-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGPLUG_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture
def offer() -> Iterator[Callable[..., regplug.ReadoutSpec]]:
    """Register a class as somebody's readout, and resolve it for 4 registers of width 24."""
    with contextlib.ExitStack() as stack:
        count = itertools.count()

        def register(cls: type[nn.Module]) -> regplug.ReadoutSpec:
            entry = regplug.ReadoutEntry(cls.__name__, build=cls)
            stack.enter_context(registered(entry, distribution=f"somebody-{next(count)}"))
            return regplug.resolve(cls.__name__, num_registers=4, hidden_dim=24)

        yield register


@pytest.fixture(scope="session")
def readout() -> Callable[..., tuple[regplug.ReadoutSpec, nn.Module]]:
    """A readout by strategy with weights that are not at their start."""

    def make(strategy: str, dtype: torch.dtype = torch.float32) -> tuple[regplug.ReadoutSpec, nn.Module]:
        options = {"compressed_dim": 6} if strategy == "compress-concat" else {}
        spec = regplug.resolve(strategy, num_registers=4, hidden_dim=24, **options)
        module = spec.build()
        generator = torch.Generator().manual_seed(1)
        for weight in module.parameters():
            nn.init.normal_(weight, generator=generator)
        return spec, module.to(dtype)

    return make


@pytest.fixture
def conditioner(readout) -> Callable[..., tuple[regplug.ReadoutSpec, nn.Module]]:  # type: ignore[no-untyped-def]
    """A conditioner by strategy and layout."""

    def make(
        strategy: str, layout: regplug.TokenLayout, dtype: torch.dtype = torch.float32
    ) -> tuple[regplug.ReadoutSpec, nn.Module]:
        spec, module = readout(strategy)
        film = regplug.pair(spec, regplug.KernelFiLMGenerator, kernel_hidden_dim=8, num_film_layers=2)
        nn.init.normal_(film.mlp[2].weight, std=0.1, generator=torch.Generator().manual_seed(2))
        return spec, regplug.Conditioner(layout, module, film).to(dtype)

    return make


def stored(state: dict[str, torch.Tensor]) -> dict[str, StoredTensor]:
    """Where each tensor is in the weights file of a state dict."""
    data = save(state)
    header_end = 8 + int.from_bytes(data[:8], "little")
    places = {name: one["data_offsets"] for name, one in json.loads(data[8:header_end]).items()}
    return {
        name: StoredTensor(
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            header_end + places[name][0],
            places[name][1] - places[name][0],
        )
        for name, tensor in state.items()
    }


@pytest.fixture
def source_of() -> Callable[..., Source]:
    """What a backend gets for a readout of 4 registers of width 24."""

    def make(module: nn.Module, width: int) -> Source:
        return Source(
            module.eval(),
            torch.randn(2, 4, 24, generator=torch.Generator().manual_seed(3)),
            InputSpec("registers", "float32", ("B", 4, 24), 0, None),
            (TensorSpec("conditioning", "float32", ("B", width)),),
            stored(module.state_dict()),
            {"holds": "readout", "strategy": "somebody:s", "num_registers": 4, "hidden_dim": 24},
        )

    return make


@pytest.fixture(scope="session")
def program_in() -> Callable[[Path], Program]:
    """The ONNX program of a bundle, which messages call ``bundle DIR``."""

    def read(bundle: Path) -> Program:
        manifest = json.loads((bundle / "manifest.json").read_text())
        properties = manifest["programs"][0]["properties"]
        return Program("program.onnx", (bundle / "program.onnx").read_bytes(), properties, "bundle DIR")

    return read
