from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.battery import in_battery
from support.commands import run_command
from torch import nn

import regplug

pytestmark = pytest.mark.slow

STRATEGIES = ("mean", "pool", "concat", "compress-concat")
LAYOUTS = {
    "prefix": regplug.TokenLayout(num_registers=4, hidden_dim=24, start=0),
    "behind-cls": regplug.TokenLayout(num_registers=4, hidden_dim=24, start=1),
    "suffix": regplug.TokenLayout(num_registers=4, hidden_dim=24, start=-4),
    "interleaved": regplug.TokenLayout(num_registers=4, hidden_dim=24, indices=(2, 5, 8, 11), num_tokens=14),
    "explicit": regplug.TokenLayout(num_registers=4, hidden_dim=24, indices=(0, 1, 5, 7), num_tokens=9),
}
OTHER_DTYPES = ("float64", "float16")

Made = tuple[regplug.ReadoutSpec, nn.Module]


def session_at(bundle: Path) -> onnxruntime.InferenceSession:
    """What somebody without regplug does."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(bundle / "program.onnx"), options, providers=["CPUExecutionProvider"])


def flat(output: object) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else [tensor for pair in output for tensor in pair]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("strategy", "dtype"),
    [
        *((strategy, "float32") for strategy in STRATEGIES),
        *(("compress-concat", dtype) for dtype in OTHER_DTYPES),
        *(pytest.param(*both, marks=pytest.mark.torture) for both in product(STRATEGIES[:3], OTHER_DTYPES)),
    ],
)
def test_a_readout_agrees_with_eager_on_every_golden_case(
    strategy: str, dtype: str, readout: Callable[..., Made], tmp_path: Path
) -> None:
    spec, module = readout(strategy, getattr(torch, dtype))
    exported = regplug.export(spec, module, tmp_path / "b", backends=["onnx"])
    (record,) = exported.manifest.programs
    assert set(record.cases) == {"batch_0", "batch_1", "batch_2", "batch_7", "batch_64", "slice"}
    assert all(case.error <= case.tolerance for case in record.cases.values())
    program = regplug.load(tmp_path / "b", program="onnx")
    # beyond the golden cases: another batch, and registers that are a view into tokens
    tokens = torch.randn(33, 9, 24).to(getattr(torch, exported.manifest.input.dtype))
    with torch.no_grad():
        wanted = module(tokens[:, 2:6])
    tolerance = 1e-2 if wanted.dtype == torch.float16 else 1e-5
    torch.testing.assert_close(program(tokens[:, 2:6]), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strategy", ["pool", *in_battery("compress-concat")])
def test_a_conditioner_of_any_layout_agrees_with_eager(
    strategy: str, layout: str, conditioner: Callable[..., Made], tmp_path: Path
) -> None:
    spec, module = conditioner(strategy, LAYOUTS[layout])
    regplug.export(spec, module, tmp_path / "b", backends=["onnx"])
    program = regplug.load(tmp_path / "b", program="onnx")
    fixed = LAYOUTS[layout].num_tokens
    lengths = [fixed] if fixed else [5, 6, 40]
    for batch in (0, 1, 3):
        for length in lengths:
            tokens = torch.randn(batch, length, 24)
            with torch.no_grad():
                for got, wanted in zip(flat(program(tokens)), flat(module(tokens)), strict=True):
                    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("layout", ["behind-cls", "suffix"])
def test_a_conditioner_in_float16_stays_within_the_tolerance(
    layout: str, conditioner: Callable[..., Made], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec, module = conditioner("pool", LAYOUTS[layout], torch.float16)
    regplug.export(spec, module, tmp_path / "b", backends=["onnx"])
    regplug.load(tmp_path / "b", program="onnx")
    assert capfd.readouterr() == ("", "")  # onnxruntime has a warning here


def test_a_film_generator_in_float64_is_refused_because_the_runtime_has_no_kernel(
    conditioner: Callable[..., Made], tmp_path: Path
) -> None:
    spec, module = conditioner("mean", LAYOUTS["prefix"], torch.float64)
    with pytest.raises(regplug.ExportError, match=r"operation aten\.gelu\.default.*got float64; .*\(Erf\)"):
        regplug.export(spec, module, tmp_path / "b", backends=["onnx"])
    assert not (tmp_path / "b").exists()


def test_bfloat16_is_refused_before_anything_is_made(readout: Callable[..., Made], tmp_path: Path) -> None:
    spec, module = readout("pool", torch.bfloat16)
    with pytest.raises(
        regplug.ExportError, match="^program 'onnx': expected float32, float64 or float16 weights, got bfloat16; "
    ):
        regplug.export(spec, module, tmp_path / "b", backends=["onnx"])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("opset", [18, 21])
def test_the_program_has_the_requested_opset(opset: int, conditioner: Callable[..., Made], tmp_path: Path) -> None:
    spec, module = conditioner("pool", LAYOUTS["suffix"])
    made = regplug.export(spec, module, tmp_path / "b", backends=["onnx"], settings={"onnx": {"opset": opset}})
    model = onnx.load(tmp_path / "b" / "program.onnx", load_external_data=False)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", opset)]
    assert made.manifest.programs[0].properties["opset"] == str(opset)


def test_verify_runs_the_program(readout: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, module = readout("compress-concat")
    regplug.export(spec, module, tmp_path / "b", backends=["onnx"])
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # without a compiler nothing is compiled, and this program needs none
    code, out, err = run_command("verify", tmp_path / "b", "--programs", "--json")
    assert code == 0, err
    assert "onnx" in out


# ---- the file


def test_the_weights_stay_in_the_weights_file(conditioner: Callable[..., Made], tmp_path: Path) -> None:
    spec, module = conditioner("compress-concat", LAYOUTS["behind-cls"])
    regplug.export(spec, module, tmp_path / "b", backends=["onnx"])
    data = (tmp_path / "b" / "program.onnx").read_bytes()
    state = module.state_dict()
    for tensor in state.values():
        assert tensor.numpy().tobytes() not in data
    model = onnx.load(tmp_path / "b" / "program.onnx", load_external_data=False)
    places = {one.name: {entry.key: entry.value for entry in one.external_data} for one in model.graph.initializer}
    assert set(places) == set(state)
    stored = (tmp_path / "b" / "weights.safetensors").read_bytes()
    for name, place in places.items():
        assert place["location"] == "weights.safetensors"
        begin, length = int(place["offset"]), int(place["length"])
        assert stored[begin : begin + length] == state[name].numpy().tobytes()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_onnxruntime_alone_runs_the_file_inside_the_bundle(
    strategy: str, conditioner: Callable[..., Made], tmp_path: Path
) -> None:
    spec, module = conditioner(strategy, LAYOUTS["behind-cls"])
    regplug.export(spec, module, tmp_path / "b", backends=["onnx"])
    session = session_at(tmp_path / "b")
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("tokens", "tensor(float)", ["B", "T", 24])
    assert [(output.name, output.shape) for output in session.get_outputs()] == [
        (name, ["B", 8]) for name in ("gamma_0", "beta_0", "gamma_1", "beta_1")
    ]
    tokens = torch.randn(3, 11, 24)
    with torch.no_grad():
        for got, wanted in zip(session.run(None, {"tokens": tokens.numpy()}), flat(module(tokens)), strict=True):
            np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_other_weights_of_the_same_layout_replace_the_first(readout: Callable[..., Made], tmp_path: Path) -> None:
    spec, module = readout("compress-concat")
    regplug.export(spec, module, tmp_path / "b", backends=["onnx"])
    nn.init.normal_(module.compress.weight, std=3.0)
    regplug.export(spec, module, tmp_path / "other", backends=[])
    (tmp_path / "b" / "weights.safetensors").write_bytes((tmp_path / "other" / "weights.safetensors").read_bytes())
    registers = torch.randn(3, 4, 24)
    (got,) = session_at(tmp_path / "b").run(None, {"registers": registers.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, module(registers).numpy(), rtol=1e-4, atol=1e-5)


def test_the_file_reveals_nothing_about_its_machine(conditioner: Callable[..., Made], tmp_path: Path) -> None:
    spec, module = conditioner("pool", LAYOUTS["suffix"])
    regplug.export(spec, module, tmp_path / "b", backends=["onnx"])
    data = (tmp_path / "b" / "program.onnx").read_bytes()
    for trace in (b"/", b".py", b"line ", b"File ", b"pkg.torch", b"pytorch", torch.__version__.encode(), b"forward"):
        assert trace not in data
    model = onnx.load_from_string(data)
    assert not model.metadata_props
    assert not model.producer_name
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)


EXPORT = """
import sys, torch, regplug
torch.manual_seed(int(sys.argv[2]))
spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=24, compressed_dim=6)
film = regplug.pair(spec, regplug.KernelFiLMGenerator, kernel_hidden_dim=8, num_film_layers=2)
layout = regplug.TokenLayout(num_registers=4, hidden_dim=24, start=1)
regplug.export(spec, regplug.Conditioner(layout, spec.build(), film), sys.argv[1], backends=["onnx"])
"""


@pytest.mark.torture
def test_the_file_is_the_same_from_any_process_folder_and_weights(tmp_path: Path) -> None:
    programs = []
    for seed in ("0", "1", "77"):
        folder = tmp_path / f"work-{seed}"
        folder.mkdir()
        env = os.environ | {"PYTHONHASHSEED": seed, "REGPLUG_CACHE_DIR": str(folder / "cache")}
        command = [sys.executable, "-c", EXPORT, str(folder / "b"), seed]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        programs.append((folder / "b" / "program.onnx").read_bytes())
        if seed != "0":
            assert (folder / "b/weights.safetensors").read_bytes() != (
                tmp_path / "work-0/b/weights.safetensors"
            ).read_bytes()
    assert programs[0] == programs[1] == programs[2]


def test_retrained_weights_need_no_second_export(
    readout: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, module = readout("compress-concat")
    regplug.export(spec, module, tmp_path / "first", backends=["onnx"])

    def export(*_: object, **__: object) -> None:
        raise AssertionError("torch.onnx.export was called")

    monkeypatch.setattr(torch.onnx, "export", export)
    nn.init.normal_(module.compress.weight, std=3.0)
    regplug.export(spec, module, tmp_path / "second", backends=["onnx"])
    assert (tmp_path / "first/program.onnx").read_bytes() == (tmp_path / "second/program.onnx").read_bytes()
    registers = torch.randn(3, 4, 24)
    with torch.no_grad():
        torch.testing.assert_close(regplug.load(tmp_path / "second", program="onnx")(registers), module(registers))
    # and the test can fail: other settings are another program
    with pytest.raises(regplug.ExportError, match=r"torch\.onnx\.export was called"):
        regplug.export(spec, module, tmp_path / "third", backends=["onnx"], settings={"onnx": {"opset": 18}})


def test_properties_say_what_the_program_needs_and_nothing_about_onnxruntime(
    readout: Callable[..., Made], tmp_path: Path
) -> None:
    spec, module = readout("compress-concat")
    made = regplug.export(spec, module, tmp_path / "b", backends=["onnx"])
    properties = made.manifest.programs[0].properties
    assert json.loads(properties["weights"]) == {"compress.weight": ["float32", [6, 24]]}
    assert set(properties) == {"weights", "opset"}
