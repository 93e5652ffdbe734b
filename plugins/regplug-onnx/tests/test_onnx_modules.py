from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import regplug
from regplug.backends import Source
from regplug_onnx.backend import OnnxBackend

Offer = Callable[[type[nn.Module]], regplug.ReadoutSpec]


class Named(nn.Module):
    """Weights with names that the exporter gives to results."""

    def __init__(self, hidden_dim: int):
        super().__init__()
        for name in ("val_0", "add", "linear", "mean", "mul"):
            self.register_parameter(name, nn.Parameter(torch.randn(hidden_dim)))

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = tokens.mean(1) * self.val_0 + self.add
        return nn.functional.linear(mixed * self.linear * self.mul, self.mean[None].expand(3, -1))


class Mixed(nn.Module):
    """Scalar, empty, integer and unused weights, and a constant of the graph."""

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.out_dim = hidden_dim  # its constant has no forward on the meta device
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.zeros(0, hidden_dim))
        self.unused = nn.Parameter(torch.randn(7))
        self.register_buffer("order", torch.tensor([3, 0, 2, 1]))
        self.register_buffer("kept", torch.tensor([True, False, True, True]))

    def forward(self, registers: Tensor) -> Tensor:
        chosen = registers[:, self.order] * self.kept[:, None]
        more = chosen.sum(1) * self.scale + self.nothing.sum(0)
        return more * torch.tensor([0.25, 1.0]).repeat(12)


class Normed(nn.Module):
    """Attention, a batch norm's running statistics, and a layer norm."""

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim)
        self.statistics = nn.BatchNorm1d(hidden_dim)
        self.attend = nn.MultiheadAttention(hidden_dim, 2, batch_first=True)

    def forward(self, registers: Tensor) -> Tensor:
        normed = self.norm(registers)
        mixed, _ = self.attend(normed, normed, normed, need_weights=False)
        return self.statistics(mixed.mean(1))


class GivesItsWeight(nn.Module):
    def __init__(self, hidden_dim: int):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(hidden_dim))

    def forward(self, registers: Tensor) -> Tensor:
        return self.bias.expand(registers.shape[0], -1)


class GivesItsInput(nn.Module):
    def forward(self, registers: Tensor) -> Tensor:
        return registers[:, 0]


class NamedAsOutput(nn.Module):
    def __init__(self, hidden_dim: int):
        super().__init__()
        self.conditioning = nn.Parameter(torch.randn(hidden_dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1) * self.conditioning


class NamedAsInput(nn.Module):
    def __init__(self, hidden_dim: int):
        super().__init__()
        self.registers = nn.Parameter(torch.randn(hidden_dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1) * self.registers


class Inexpressible(nn.Module):
    def forward(self, registers: Tensor) -> Tensor:
        return torch.special.bessel_j0(registers).mean(1)


@pytest.mark.parametrize("cls", [Named, Mixed, Normed, GivesItsWeight, GivesItsInput])
def test_a_module_of_another_plugin_passes_the_gate(cls: type[nn.Module], offer: Offer, tmp_path: Path) -> None:
    spec = offer(cls)
    module = spec.build().eval()
    regplug.export(spec, module, tmp_path / "b", backends=["onnx"])
    program = regplug.load(tmp_path / "b", program="onnx")
    for batch in (1, 5):
        registers = torch.randn(batch, 4, 24)
        with torch.no_grad():
            torch.testing.assert_close(program(registers), module(registers), rtol=1e-4, atol=1e-5)


def test_the_result_of_a_program_can_be_written_to(offer: Offer, tmp_path: Path) -> None:
    for cls in (GivesItsWeight, GivesItsInput):
        spec = offer(cls)
        regplug.export(spec, spec.build(), tmp_path / cls.__name__, backends=["onnx"])
        program = regplug.load(tmp_path / cls.__name__, program="onnx")
        registers = torch.randn(3, 4, 24)
        kept = registers.clone()
        first = program(registers)
        wanted = first.clone()
        with torch.inference_mode():
            first.fill_(7)
        assert torch.equal(registers, kept)
        assert torch.equal(program(registers), wanted)


@pytest.mark.parametrize(("cls", "name"), [(NamedAsOutput, "conditioning"), (NamedAsInput, "registers")])
def test_a_weight_with_the_name_of_the_input_or_an_output_is_refused(
    cls: type[nn.Module], name: str, offer: Offer, tmp_path: Path
) -> None:
    spec = offer(cls)
    with pytest.raises(
        regplug.ExportError, match=f"^program 'onnx': tensor '{name}': expected another name than the input's and the "
    ):
        regplug.export(spec, spec.build(), tmp_path / "b", backends=["onnx"])


def test_an_operator_that_onnx_lacks_is_named(offer: Offer, tmp_path: Path) -> None:
    spec = offer(Inexpressible)
    with pytest.raises(
        regplug.ExportError,
        match=r"^program 'onnx': expected a module that torch\.onnx\.export takes, got: .*bessel_j0[^\n\x1b]*$",
    ):
        regplug.export(spec, spec.build(), tmp_path / "b", backends=["onnx"])
    assert not (tmp_path / "b").exists()


def test_a_tensor_subclass_is_refused_by_name(readout, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    class Own(torch.Tensor):
        def __deepcopy__(self, memo: object) -> torch.Tensor:
            return nn.Parameter(self.detach().clone())

    spec, module = readout("compress-concat")
    module.compress.weight = nn.Parameter(module.compress.weight.detach().as_subclass(Own))
    with pytest.raises(regplug.ExportError, match=r"tensor 'compress\.weight': expected a plain tensor, got "):
        regplug.export(spec, module, tmp_path / "b", backends=["onnx"])
    assert not (tmp_path / "b").exists()


def test_a_quantised_layer_is_refused_by_name(readout, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    spec, module = readout("compress-concat")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization is deprecated, and not ours
        module.compress = torch.ao.quantization.quantize_dynamic(nn.Sequential(module.compress), {nn.Linear})[0]
        with pytest.raises(regplug.ExportError, match=r"state 'compress\._packed_params\.dtype': expected a tensor"):
            regplug.export(spec, module, tmp_path / "b", backends=["onnx"])
    assert not (tmp_path / "b").exists()


def test_the_backend_exports_any_source_and_leaves_unused_weights_out(source_of: Callable[..., Source]) -> None:
    module = Mixed(24)
    source = source_of(module, 24)
    (program,) = OnnxBackend().export(source)
    run = OnnxBackend().open("bundle x: weights.safetensors", program, module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(run(source.example)[0], module(source.example))
    assert b"unused" not in program.data
    assert b"unused" in program.properties["weights"].encode()
