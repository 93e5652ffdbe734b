"""Verify: what it runs, and that it detects what is wrong."""

import contextlib
import math
import os
import pty
import re
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from click.testing import CliRunner
from support.damage import edit_manifest, rename_strategy, repin, replace_weights
from support.plugins import installed_with
from support.readouts import SIZES

import regplug
from regplug.bundle.golden import CaseError
from regplug.bundle.program import LoadedProgram
from regplug.bundle.verify import VerifiedCase, _refuses
from regplug.bundle.wrong_inputs import wrong_inputs
from regplug.commands.main import group
from regplug.format.weights import load_tensors, save_tensors

CASES = ["batch_0", "batch_1", "batch_2", "batch_7", "batch_64", "slice"]


def test_by_default_eager_is_held_to_every_golden_case_and_nothing_else_runs(bundles):
    found = regplug.verify(bundles / "readout")
    assert found.ok
    assert [(check.program, check.case) for check in found.checks] == [("eager", case) for case in CASES]


@pytest.mark.compiler
def test_with_programs_compiled_and_stored_programs_run_every_case_and_refuse_wrong_inputs(bundles):
    found = regplug.verify(bundles / "readout", programs=True)
    assert found.ok
    by_program = {
        name: [c for c in found.checks if c.program == name] for name in ("eager", "torch.compile", "torchscript")
    }
    assert [check.case for check in by_program["torch.compile"]] == CASES
    assert [check.case for check in by_program["torchscript"]] == [
        *CASES,
        "wrong R",
        "wrong R, more",
        "wrong D",
        "wrong rank",
        "wrong dtype",
    ]
    assert {check.verdict for check in by_program["torchscript"][len(CASES) :]} == {"refused"}


def test_progress_is_called_at_the_start_of_each_step(bundles):
    steps = []
    regplug.verify(bundles / "conditioner", progress=steps.append)
    assert steps == ["eager"]


@pytest.mark.compiler
def test_the_terminal_and_the_help_say_that_verify_compiles(bundles):
    screen, terminal = pty.openpty()
    seen = []

    def look():  # else the writer would block
        with contextlib.suppress(OSError):  # the other end is closed
            while True:
                seen.append(os.read(screen, 4096))

    reader = threading.Thread(target=look)
    reader.start()
    command = [sys.executable, "-m", "regplug", "verify", bundles / "readout", "--programs"]
    env = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, check=False, env=env)
    os.close(terminal)
    reader.join()
    os.close(screen)
    assert b"torch.compile" in done.stdout.splitlines()[0]
    assert b"compiling the installed class with torch.compile" in b"".join(seen)
    text = CliRunner().invoke(group, ["verify", "--help"]).output
    assert "compile the installed class" in " ".join(text.split())


def test_eager_that_left_its_tolerance_is_a_failed_row(bundles, tmp_path, monkeypatch):
    from regplug.nn.readouts.concatenations import RegisterCompressConcat

    forward = RegisterCompressConcat.forward
    monkeypatch.setattr(RegisterCompressConcat, "forward", lambda self, registers: forward(self, registers) + 1e-3)
    found = regplug.verify(bundles / "readout")
    assert not found.ok
    assert {check.case: check.verdict for check in found.checks} == {
        **dict.fromkeys(CASES, "failed"),
        "batch_0": "ok",
    }


def test_weights_of_another_training_fail_every_case(bundles, tmp_path):
    folder = shutil.copytree(bundles / "readout", tmp_path / "b")
    replace_weights(folder, lambda state: {name: tensor + 0.1 for name, tensor in state.items()})
    assert not regplug.verify(folder).ok


LARGEST_ERROR = 16 * 2**-11.5  # of a float32 output of 1


@pytest.mark.parametrize("value", [1e308, 1e-30, 0.0])
@pytest.mark.parametrize("load", [regplug.load, regplug.verify, lambda f: regplug.load(f, program="torchscript")])
def test_a_tolerance_that_the_formula_does_not_give_is_refused_by_every_reader(bundles, tmp_path, load, value):
    folder = shutil.copytree(bundles / "readout", tmp_path / "b")
    replace_weights(folder, lambda state: {name: 1000 * torch.randn_like(tensor) for name, tensor in state.items()})
    with_tolerances(folder, lambda case: {"tolerance": value})
    # B = 0 has no outputs, and so no tolerance but 0
    index = int(value == 0.0)
    said = rf"manifest.json: golden.cases.{index}.tolerance: expected [0-9.e-]+, got {re.escape(f'{value:.12g}')}"
    with pytest.raises(regplug.BundleError, match=said):
        load(folder)


def with_tolerances(folder, change):
    """Change what the manifest says of each case, and of each program's cases alike."""

    def edit(values):
        for case in values["golden"]["cases"]:
            case.update(change(case))
            for program in values["programs"]:
                program["cases"][case["case"]] = {"error": 0.0, "tolerance": case["tolerance"]}

    edit_manifest(folder, edit)


def scale(folder, case):
    tensors = load_tensors("golden", (folder / "golden.safetensors").read_bytes())
    found = [tensor for name, tensor in tensors.items() if name.startswith(f"{case['case']}.output.")]
    return max((tensor.abs().max().item() for tensor in found if tensor.numel()), default=0.0)


def test_an_eager_error_too_large_for_its_dtype_is_refused(bundles, tmp_path):
    folder = shutil.copytree(bundles / "readout", tmp_path / "b")

    def claim(share):
        def change(case):
            error = share * LARGEST_ERROR * scale(folder, case)
            return {"eager_error": error, "tolerance": 4 * error + 4 * 2**-23 * scale(folder, case)}

        with_tolerances(folder, change)

    claim(1.01)
    with pytest.raises(
        regplug.BundleError, match=r"golden\.cases\.1\.eager_error: expected at most [0-9.]+, got [0-9.]+"
    ):
        regplug.load(folder)
    claim(0.99)
    regplug.load(folder)


def test_verify_measures_the_error_of_eager_again(bundles, tmp_path):
    folder = shutil.copytree(bundles / "readout", tmp_path / "b")

    def change(case):
        error = 1e-4 * scale(folder, case)
        return {"eager_error": error, "tolerance": 4 * error + 4 * 2**-23 * scale(folder, case)}

    with_tolerances(folder, change)
    regplug.load(folder)
    found = regplug.verify(folder)
    assert not found.ok
    assert {check.case for check in found.checks if not check.ok} == set(CASES) - {"batch_0"}
    [said] = [check.detail for check in found.checks if check.case == "batch_7"]
    assert re.fullmatch(r"case 'batch_7': eager_error: expected at most \S+ as measured here, got \S+\.", said)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_golden_outputs_that_are_not_finite_are_refused(bundles, tmp_path, value):
    folder = shutil.copytree(bundles / "readout", tmp_path / "b")
    golden = load_tensors("golden", (folder / "golden.safetensors").read_bytes())
    golden["batch_2.output.conditioning"][1, 3] = value
    (folder / "golden.safetensors").write_bytes(save_tensors(golden))
    repin(folder)
    said = "golden.safetensors: case 'batch_2': expected finite outputs, got inf or nan"
    for read in (regplug.load, regplug.verify, lambda f: regplug.load(f, program="torchscript")):
        with pytest.raises(regplug.BundleError, match=said):
            read(folder)


def test_no_infinite_error_is_within_an_infinite_tolerance():
    assert not CaseError("batch_1", math.inf, math.inf).ok
    assert not CaseError("batch_1", math.nan, math.inf).ok
    assert CaseError("batch_1", 1e300, 1e300).ok


def test_a_module_too_coarse_in_its_dtype_is_not_exported(tmp_path, monkeypatch):
    """Its error would make a tolerance of half the outputs, which refuses nothing."""
    from regplug.nn.readouts.averages import RegisterMean

    spec = regplug.resolve("mean", num_registers=4, hidden_dim=24)
    forward = RegisterMean.forward
    coarse = lambda self, given: forward(self, given) + (given.dtype == torch.float32) * 0.1  # noqa: E731
    monkeypatch.setattr(RegisterMean, "forward", coarse)
    with pytest.raises(regplug.ExportError, match="case 'batch_1': expected outputs within .* of float64, got 0.1"):
        regplug.export(spec, spec.build(), tmp_path / "b", backends=[])


def test_a_program_that_accepts_a_wrong_input_is_detected(bundles):
    program = regplug.load(bundles / "readout", program="torchscript")
    assert all(_refuses(program, inputs) for _, inputs in wrong_inputs(program.manifest))

    class Careless(LoadedProgram):
        def run_flat(self, *inputs):
            return list(inputs)

    careless = Careless("careless", program.manifest, "", lambda given: [given])
    assert not any(_refuses(careless, inputs) for _, inputs in wrong_inputs(program.manifest))
    assert not VerifiedCase("careless", "wrong R", "accepted").ok


def test_programs_are_verified_without_the_strategys_plugin(bundles, tmp_path):
    from regplug.registry.discovery import discover

    bare = regplug.Registry({"regplug": discover()["regplug"]})
    found = bare.readout_entries()
    assert found
    folder = shutil.copytree(bundles / "readout", tmp_path / "b")
    edit_manifest(folder, rename_strategy("elsewhere:compress-concat"))
    verified = regplug.verify(folder, programs=True, registry=bare)
    assert verified.ok
    assert [check.verdict for check in verified.checks if check.program == "eager"] == ["not installed"]
    with pytest.raises(regplug.NameLookupError, match="strategy 'elsewhere:compress-concat'"):
        regplug.verify(folder, registry=bare)


class Chatty(torch.nn.Module):
    """Breaks the graph."""

    def __init__(self, hidden_dim: int):
        super().__init__()

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return registers.mean(1)


def test_a_graph_break_is_a_failed_row_and_the_other_programs_are_verified(tmp_path):
    registry = installed_with(regplug.ReadoutEntry("chatty", Chatty))
    spec = registry.resolve("chatty", **SIZES)
    regplug.export(spec, spec.build(), tmp_path / "b", backends=[], registry=registry)
    found = regplug.verify(tmp_path / "b", programs=True, registry=registry)
    assert not found.ok
    assert [check.verdict for check in found.checks if check.program == "torch.compile"] == ["failed"]
    assert "torch.compile: expected a program of Chatty, got" in found.checks[-1].detail
    assert all(check.ok for check in found.checks if check.program == "eager")


@pytest.mark.parametrize(
    "error", [MemoryError(), SystemError("error return without exception set"), ImportError("map")]
)
def test_a_compiler_out_of_memory_is_a_failed_row_and_the_other_programs_are_verified(bundles, monkeypatch, error):
    def compile_nothing(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "compile", compile_nothing)
    found = regplug.verify(bundles / "readout", programs=True)
    rows = {check.program: check for check in found.checks}
    assert rows["torch.compile"].verdict == "failed"
    assert rows["torch.compile"].detail.startswith(f"torch.compile: {type(error).__name__}: ")
    assert all(check.ok for check in found.checks if check.program == "torchscript")


def test_a_program_keeps_its_dtype_under_autocast(bundles):
    registers = torch.randn(2, 4, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        program = regplug.load(bundles / "readout", program="torchscript")
        assert program(registers).dtype == torch.float32
        assert regplug.verify(bundles / "readout").ok
