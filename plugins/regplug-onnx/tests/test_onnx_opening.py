from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from safetensors.torch import load

import regplug
from regplug.backends import Program
from regplug_onnx.backend import OnnxBackend

Made = tuple[Program, dict[str, torch.Tensor], torch.nn.Module]

OWNER = "bundle DIR: weights.safetensors"


@pytest.fixture(scope="module")
def made(readout, program_in, tmp_path_factory: pytest.TempPathFactory) -> Made:  # type: ignore[no-untyped-def]
    """A program, its weights, and the module it was made of."""
    folder = tmp_path_factory.mktemp("made")
    spec, module = readout("compress-concat")
    regplug.export(spec, module, folder / "b", backends=["onnx"])
    state = load((folder / "b/weights.safetensors").read_bytes())
    return program_in(folder / "b"), state, module


def changed(program: Program, change: Callable[[ModelProto], object]) -> Program:
    model = onnx.load_from_string(program.data)
    change(model)
    return replace(program, data=model.SerializeToString())


def refusal(program: Program, state: dict[str, torch.Tensor]) -> str:
    with pytest.raises(regplug.BundleError) as caught:
        OnnxBackend().open(OWNER, program, state)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_program_runs_where_there_is_no_file(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, state, module = made
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    registers = torch.randn(3, 4, 24)
    with torch.no_grad():
        torch.testing.assert_close(OnnxBackend().open(OWNER, program, state)(registers)[0], module(registers))
    # not even where a file of that name has other weights
    (tmp_path / "empty/weights.safetensors").write_bytes(os.urandom(4096))
    with torch.no_grad():
        torch.testing.assert_close(OnnxBackend().open(OWNER, program, state)(registers)[0], module(registers))


def test_no_system_call_opens_a_weights_file(made: Made, tmp_path: Path) -> None:
    program, _, _ = made
    (tmp_path / "program.onnx").write_bytes(program.data)
    code = f"""
import sys, torch
from regplug.backends import Program
from regplug_onnx.backend import OnnxBackend
opened = []
data = open({str(tmp_path / "program.onnx")!r}, "rb").read()
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
run = OnnxBackend().open({OWNER!r}, Program("program.onnx", data, {dict(program.properties)!r}),
                         {{"compress.weight": torch.ones(6, 24)}})
assert run(torch.ones(2, 4, 24))[0].tolist() == [[24.0] * 24] * 2
print([name for name in opened if "safetensors" in str(name) or "onnx" in str(name) and str(name).endswith("onnx")])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_caller_may_change_its_weights_afterwards(made: Made) -> None:
    program, stored, module = made
    state = {name: tensor.clone() for name, tensor in stored.items()}
    run = OnnxBackend().open(OWNER, program, state)
    registers = torch.randn(3, 4, 24)
    with torch.no_grad():
        wanted = module(registers).clone()
        for tensor in state.values():
            tensor.fill_(float("nan"))
        state.clear()
        torch.testing.assert_close(run(registers)[0], wanted)


def test_other_weights_are_refused_by_name_shape_and_dtype(made: Made) -> None:
    program, _, _ = made
    assert refusal(program, {"a": torch.zeros(1)}) == f"{OWNER}: expected tensors [compress.weight], got [a]."
    assert refusal(program, {"compress.weight": torch.zeros(6, 23)}) == (
        f"{OWNER}: tensor 'compress.weight': expected float32 [6, 24], got float32 [6, 23]."
    )
    assert refusal(program, {"compress.weight": torch.zeros(6, 24).double()}) == (
        f"{OWNER}: tensor 'compress.weight': expected float32 [6, 24], got float64 [6, 24]."
    )


def test_a_program_without_its_properties_is_refused(made: Made) -> None:
    program, state, _ = made
    assert refusal(replace(program, properties={}), state).startswith("bundle DIR: program.onnx: weights: expected ")


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../x", "./weights.safetensors", "weights.safetensors/", "", "*/_ORT_MEM_ADDR_/*", "other.bin"],
)
def test_a_program_that_names_another_file_is_refused_before_it_is_opened(
    location: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, state, _ = made
    monkeypatch.setattr("regplug_onnx.opening.InferenceSession", None)  # a session would be a TypeError

    def point(model: ModelProto) -> None:
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location

    assert refusal(changed(program, point), state) == (
        "bundle DIR: program.onnx: tensor 'compress.weight': expected data in ['weights.safetensors'], "
        f"got [{location!r}]."
    )


def external(name: str, location: str = "weights.safetensors", dims: tuple[int, ...] = (6, 24)) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def with_branch(model: ModelProto, tensor: TensorProto) -> None:
    """The tensor inside a branch of an If."""
    branch = helper.make_graph(
        [helper.make_node("Identity", [tensor.name], ["y"])],
        "branch",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [tensor],
    )
    model.graph.node.append(helper.make_node("If", ["registers"], ["z"], then_branch=branch, else_branch=branch))


HOSTILE: dict[str, tuple[Callable[[ModelProto], object], str]] = {
    "a second location": (
        lambda model: model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd"),
        "expected data in ['weights.safetensors'], got ['weights.safetensors', '/etc/passwd'].",
    ),
    "no location": (
        lambda model: model.graph.initializer[0].ClearField("external_data"),
        "expected data in ['weights.safetensors'], got [].",
    ),
    "a tensor that is not a weight": (
        lambda model: model.graph.initializer.append(external("more")),
        "tensor 'more': expected the weights, each once, got another tensor.",
    ),
    "a weight twice": (
        lambda model: model.graph.initializer.append(external("compress.weight")),
        "tensor 'compress.weight': expected the weights, each once, got another tensor.",
    ),
    "a weight of another shape": (
        lambda model: model.graph.initializer[0].dims.__setitem__(0, 600),
        "tensor 'compress.weight': expected float32 [6, 24], got float32 [600, 24].",
    ),
    "a weight of another dtype": (
        lambda model: setattr(model.graph.initializer[0], "data_type", TensorProto.DOUBLE),
        "tensor 'compress.weight': expected float32 [6, 24], got float64 [6, 24].",
    ),
    "a file in an attribute": (
        lambda model: model.graph.node.append(
            helper.make_node("Constant", [], ["c"], value=external("c", "/etc/passwd"))
        ),
        "tensor 'c': expected data in ['weights.safetensors'], got ['/etc/passwd'].",
    ),
    "a file in a branch": (
        lambda model: with_branch(model, external("c", "/etc/passwd")),
        "tensor 'c': expected data in ['weights.safetensors'], got ['/etc/passwd'].",
    ),
    "a file in a sparse tensor": (
        lambda model: model.graph.sparse_initializer.add().values.CopyFrom(external("c", "/etc/passwd")),
        "tensor 'c': expected data in ['weights.safetensors'], got ['/etc/passwd'].",
    ),
    "the weight in an attribute": (
        lambda model: (
            model.graph.node.append(helper.make_node("Constant", [], ["c"], value=external("compress.weight"))),
            model.graph.initializer.pop(),
        ),
        "expected the weights as initializers of the graph, got some elsewhere.",
    ),
    "an operator that reads files": (
        lambda model: model.graph.node.append(helper.make_node("EPContext", [], ["c"], domain="com.microsoft")),
        "expected ONNX's own operators, got 'EPContext' of domain 'com.microsoft'.",
    ),
    "a function": (
        lambda model: model.functions.add(name="f", domain="d"),
        "expected one graph, got functions or training with it.",
    ),
    "a second input": (
        lambda model: model.graph.input.add(name="more"),
        "expected one input and some outputs, got 2 and 1.",
    ),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_program_is_refused_before_it_is_opened(
    attack: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, state, _ = made
    monkeypatch.setattr("regplug_onnx.opening.InferenceSession", None)
    change, reason = HOSTILE[attack]
    message = refusal(changed(program, change), state)
    assert message.startswith("bundle DIR: program.onnx: ")
    assert message.endswith(reason)


@pytest.mark.parametrize("data", [b"", b"not ONNX", b"\x00" * 4096, bytes(range(256)) * 8])
def test_bytes_that_are_not_a_model_are_refused(data: bytes, made: Made) -> None:
    program, state, _ = made
    assert refusal(replace(program, data=data), state).startswith("bundle DIR: program.onnx: expected ")


def test_damaged_programs_are_refused_or_opened_silently(made: Made, capfd: pytest.CaptureFixture[str]) -> None:
    program, state, _ = made
    generator = torch.Generator().manual_seed(5)
    refusals = []
    for _ in range(150):
        data = bytearray(program.data)
        for position in torch.randint(len(data), (3,), generator=generator).tolist():
            data[position] = int(torch.randint(256, (1,), generator=generator))
        try:
            OnnxBackend().open(OWNER, replace(program, data=bytes(data)), state)
        except regplug.BundleError as error:
            refusals.append(str(error))
    assert len(refusals) > 75
    assert all(one.startswith("bundle DIR: program.onnx: ") and "\n" not in one for one in refusals)
    assert capfd.readouterr() == ("", "")


def test_what_onnxruntime_refuses_is_reported_on_one_line_and_nothing_is_printed(
    made: Made, capfd: pytest.CaptureFixture[str]
) -> None:
    program, state, _ = made

    def change(model: ModelProto) -> None:
        model.graph.node[-1].op_type = "NoSuchOperator"

    message = refusal(changed(program, change), state)
    assert message.startswith("bundle DIR: program.onnx: ")
    assert "NoSuchOperator" in message
    assert capfd.readouterr() == ("", "")


def test_threads_share_a_program(made: Made) -> None:
    program, state, module = made
    run = OnnxBackend().open(OWNER, program, state)
    inputs = [torch.randn(1 + index % 5, 4, 24) for index in range(200)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda given: run(given)[0], inputs))
    with torch.no_grad():
        for given, got in zip(inputs, outputs, strict=True):
            torch.testing.assert_close(got, module(given))


def test_a_session_has_as_many_threads_as_torch(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    program, state, _ = made
    seen = []

    class Session:
        def __init__(self, _: bytes, options: object, **settings: object) -> None:
            seen.append((options.intra_op_num_threads, options.inter_op_num_threads, settings))  # type: ignore[attr-defined]
            raise RuntimeError("enough")

    monkeypatch.setattr("regplug_onnx.opening.InferenceSession", Session)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert refusal(program, state).startswith("bundle DIR: program.onnx: enough (")
    assert seen == [(3, 1, {"providers": ["CPUExecutionProvider"], "enable_fallback": 0})]


def test_inputs_that_need_a_gradient_or_are_negated_views_work(made: Made) -> None:
    program, state, module = made
    run = OnnxBackend().open(OWNER, program, state)
    complex_numbers = torch.randn(2, 4, 24, dtype=torch.complex64)
    negated = complex_numbers.conj().imag
    assert negated.is_neg()
    with torch.no_grad():
        torch.testing.assert_close(run(negated.contiguous())[0], module(negated))
    given = torch.randn(2, 4, 24, requires_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(run(given)[0], module(given))
