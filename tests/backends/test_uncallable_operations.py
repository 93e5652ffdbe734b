"""Operations that a model library cannot call: refused by name, before the C++ compiler runs."""

import stat

import pytest
import torch
from support.battery import in_battery
from support.plugins import registered
from torch import nn

import regplug

SIZES = {"num_registers": 4, "hidden_dim": 6}

torch.library.define("regplug_tests::double", "(Tensor x) -> Tensor")
torch.library.impl("regplug_tests::double", "CompositeExplicitAutograd")(lambda x: x * 2)
torch.library.register_fake("regplug_tests::double")(lambda x: torch.empty_like(x))


class _Readout(nn.Module):
    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__()


class Median(_Readout):
    def forward(self, registers):
        return registers.median(1).values


class InverseFourier(_Readout):
    def forward(self, registers):
        return torch.fft.irfft(torch.fft.rfft(registers, dim=1), n=4, dim=1).mean(1)


class OwnOperation(_Readout):
    def forward(self, registers):
        return torch.ops.regplug_tests.double(registers).mean(1)


class Fourier(_Readout):
    def forward(self, registers):
        return torch.fft.rfft(registers, dim=1).abs().mean(1)


def export(cls, folder, backend):
    name = cls.__name__.lower()
    with registered(regplug.ReadoutEntry(name, build=cls)):
        spec = regplug.resolve(name, **SIZES)
        return regplug.export(spec, spec.build(), folder, backends=[backend])


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("cls", "operation"),
    [
        (Median, "aten.median.dim"),
        (InverseFourier, "aten._fft_c2r.default"),
        (OwnOperation, "regplug_tests.double.default"),
    ],
)
def test_an_operation_without_a_c_interface_is_refused_by_its_name(cls, operation, tmp_path, monkeypatch, capfd):
    compiler = tmp_path / "c++"
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *-dM*|*--version*) ;; *) echo "$@" >> {tmp_path}/ran ;; esac\nexec c++ "$@"\n'
    )
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(regplug.ExportError, match=f"operation {operation} at .*test_uncallable_operations.py:"):
        export(cls, tmp_path / "b", "aotinductor")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "b").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("backend", ["torchscript", *in_battery("aotinductor")])
def test_a_supported_fourier_transform_is_exported(backend, tmp_path, capfd):
    export(Fourier, tmp_path / "b", backend)
    assert regplug.load(tmp_path / "b", program=backend)(torch.zeros(2, 4, 6)).shape == (2, 6)
    assert capfd.readouterr() == ("", "")
