"""Verify: what it runs, what it finds, and that it finds what is wrong."""

import pytest
import torch
from damage import edit_manifest, rename_strategy, replace_weights

import regplug
from regplug.program import LoadedProgram
from regplug.verification import Check, _refuses, wrong_inputs

SIZES = {"num_registers": 4, "hidden_dim": 24}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    spec = regplug.resolve("compress-concat", **SIZES, compressed_dim=6)
    torch.manual_seed(0)
    film = regplug.pair(spec, regplug.KernelFiLMGenerator, kernel_hidden_dim=5, num_film_layers=2)
    layout = regplug.TokenLayout(**SIZES, start=1)
    regplug.export(spec, spec.build(), folder / "readout")
    regplug.export(spec, regplug.Conditioner(layout, spec.build(), film), folder / "conditioner")
    return folder


CASES = ["batch_0", "batch_1", "batch_2", "batch_7", "batch_64", "slice"]


def test_by_default_eager_is_held_to_every_golden_case_and_nothing_else_runs(bundles):
    found = regplug.verify(bundles / "readout")
    assert found.ok
    assert [(check.program, check.case) for check in found.checks] == [("eager", case) for case in CASES]


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


def test_steps_are_told_as_they_begin(bundles):
    steps = []
    regplug.verify(bundles / "conditioner", progress=steps.append)
    assert steps == ["eager"]


def test_eager_that_left_its_tolerance_is_a_failed_row(bundles, tmp_path, monkeypatch):
    from regplug.readouts.concatenations import RegisterCompressConcat

    forward = RegisterCompressConcat.forward
    monkeypatch.setattr(RegisterCompressConcat, "forward", lambda self, registers: forward(self, registers) + 1e-3)
    found = regplug.verify(bundles / "readout")
    assert not found.ok
    assert {check.case: check.verdict for check in found.checks} == {
        **dict.fromkeys(CASES, "failed"),
        "batch_0": "ok",
    }


def test_weights_of_another_training_fail_every_case(bundles, tmp_path):
    import shutil

    folder = shutil.copytree(bundles / "readout", tmp_path / "b")
    replace_weights(folder, lambda state: {name: tensor + 0.1 for name, tensor in state.items()})
    assert not regplug.verify(folder).ok


def test_a_program_that_takes_what_it_must_refuse_is_seen(bundles):
    program = regplug.load(bundles / "readout", program="torchscript")
    signature = program.manifest.input
    assert all(_refuses(program, given) for _, given in wrong_inputs(signature))

    class Careless(LoadedProgram):
        def __call__(self, given):
            return given

    careless = Careless("careless", program.manifest, "", lambda given: [given])
    assert not any(_refuses(careless, given) for _, given in wrong_inputs(signature))
    assert not Check("careless", "wrong R", "accepted").ok


def test_a_bundle_whose_strategy_is_not_installed_still_has_its_programs_verified(bundles, tmp_path):
    from regplug.discovery import discover

    bare = regplug.Registry({"regplug": discover()["regplug"]})
    found = bare.readout_entries()
    assert found
    import shutil

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


def test_a_graph_break_is_a_failed_row_with_its_reason_beside_the_other_programs(tmp_path):
    from regplug.discovery import discover

    class Plugin:
        @regplug.hookimpl
        def regplug_readouts(self):
            return [regplug.ReadoutEntry("chatty", Chatty)]

    registry = regplug.Registry(discover())
    registry.register(Plugin(), "test-plugin")
    spec = registry.resolve("chatty", **SIZES)
    regplug.export(spec, spec.build(), tmp_path / "b", backends=[], registry=registry)
    found = regplug.verify(tmp_path / "b", programs=True, registry=registry)
    assert not found.ok
    assert [check.verdict for check in found.checks if check.program == "torch.compile"] == ["failed"]
    assert "torch.compile: expected a program of Chatty, got" in found.checks[-1].detail
    assert all(check.ok for check in found.checks if check.program == "eager")


def test_a_program_keeps_its_dtype_under_autocast(bundles):
    registers = torch.randn(2, 4, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        program = regplug.load(bundles / "readout", program="torchscript")
        assert program(registers).dtype == torch.float32
        assert regplug.verify(bundles / "readout").ok
