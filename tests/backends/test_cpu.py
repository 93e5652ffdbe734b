"""What this CPU has: looked up, never guessed."""

from pathlib import Path

import pytest
import torch

import regplug
from regplug.backends import aotinductor, cpu

FROZEN = Path(__file__).parents[1] / "data" / "format-1" / "readout"
BACKENDS = ("torchscript", "aotinductor", "onnx")
UNKNOWN = (
    "CPU: expected its flags in /proc/cpuinfo, got none, and none from the C library; mount /proc, or use a program "
    "that needs none, as torchscript."
)


@pytest.fixture(autouse=True)
def fresh():
    cpu.cpu_flags.cache_clear()
    yield
    cpu.cpu_flags.cache_clear()


@pytest.fixture(params=["missing", "without flags", "no text"])
def without_cpuinfo(tmp_path, monkeypatch, request):
    """No list of flags, as with systemd's ProcSubset=pid or on another kind of CPU."""
    contents = {"without flags": b"processor : 0\nFeatures : fp asimd\n", "no text": b"\xff\xfe"}
    if request.param in contents:
        (tmp_path / "cpuinfo").write_bytes(contents[request.param])
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")


@pytest.fixture
def without_flags(without_cpuinfo, monkeypatch):
    monkeypatch.setattr(cpu, "C_FUNCTION", "no_such_function")


def test_the_c_library_agrees_with_cpuinfo():
    listed, found = cpu._cpuinfo_flags(), cpu._c_library_flags()
    assert {word for word, present in found.items() if present} == listed & set(found)
    assert {"avx2", "movbe", "abm", "fma"} <= listed & set(found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_cpuinfo_every_program_runs(without_cpuinfo, backend):
    program = regplug.load(FROZEN, program=backend)
    with torch.no_grad():
        torch.testing.assert_close(program(torch.ones(2, 4, 6)), regplug.load(FROZEN)(torch.ones(2, 4, 6)))


@pytest.mark.parametrize("backend", ["torchscript", "onnx"])
def test_a_program_that_needs_no_flags_runs_on_an_unknown_cpu(without_flags, backend):
    assert regplug.load(FROZEN, program=backend)(torch.ones(2, 4, 6)).shape[0] == 2


def test_a_program_that_needs_flags_is_refused_on_an_unknown_cpu_and_the_cpu_is_not_blamed(without_flags):
    with pytest.raises(regplug.BundleError) as error:
        regplug.load(FROZEN, program="aotinductor")
    assert str(error.value) == UNKNOWN


def test_a_flag_that_the_c_library_does_not_know_is_not_reported_as_missing(without_cpuinfo):
    assert cpu.missing_flags({"cpu_flags": "avx2 fma"}) == []
    with pytest.raises(regplug.BundleError, match="got none, and none from the C library"):
        cpu.missing_flags({"cpu_flags": "avx2 rdrand"})


def test_export_on_an_unknown_cpu_is_refused_before_anything_is_compiled(without_flags, tmp_path, monkeypatch):
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(aotinductor, "compile_in_child", None)
    spec = regplug.resolve("mean", num_registers=2, hidden_dim=8)
    with pytest.raises(regplug.ExportError) as error:
        regplug.export(spec, spec.build(), tmp_path / "b", backends=["aotinductor"])
    assert str(error.value) == f"program 'aotinductor': {UNKNOWN}"
