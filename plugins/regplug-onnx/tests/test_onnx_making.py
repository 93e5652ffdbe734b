from __future__ import annotations

from collections.abc import Callable

import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

import regplug
from regplug.backends import Source, StoredTensor, export_graph
from regplug_onnx.making import check_offsets, drop_whole_slices, make_model, point_to_weights, strip, used_weights

STORED = {"w": StoredTensor("float32", (2, 3), 128, 24)}


def model_with(values: Tensor, name: str = "w") -> ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", name], ["y"], doc_string="File model.py, line 3")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 3])],
        [numpy_helper.from_array(values.numpy(), name)],
    )
    return helper.make_model(graph, producer_name="somebody")


def test_a_weight_becomes_its_offset_in_the_weights_file() -> None:
    model = model_with(torch.arange(6.0).reshape(2, 3))
    point_to_weights(model, STORED, {"w"})
    (tensor,) = model.graph.initializer
    assert not tensor.raw_data
    assert {entry.key: entry.value for entry in tensor.external_data} == {
        "location": "weights.safetensors",
        "offset": "128",
        "length": "24",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [("location", "../weights.safetensors"), ("location", "/etc/passwd"), ("offset", "127"), ("length", "9999")],
)
def test_a_model_that_reads_anything_but_its_weights_at_their_offsets_is_refused(key: str, value: str) -> None:
    model = model_with(torch.arange(6.0).reshape(2, 3))
    point_to_weights(model, STORED, {"w"})
    check_offsets(model, STORED)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    with pytest.raises(regplug.ExportError, match=r"^program 'onnx': tensor 'w': expected data at .*, got .*\.$"):
        check_offsets(model, STORED)


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (torch.zeros(3, 2), r"float32 \[3, 2\]"),  # an exporter that transposes
        (torch.zeros(2, 3).double(), r"float64 \[2, 3\]"),  # one that casts
        (torch.zeros(6), r"float32 \[6\]"),
    ],
)
def test_a_weight_that_differs_from_the_stored_one_is_refused(values: Tensor, got: str) -> None:
    with pytest.raises(
        regplug.ExportError,
        match=rf"^program 'onnx': tensor 'w': expected float32 \[2, 3\] as it is stored, got {got}\.$",
    ):
        point_to_weights(model_with(values), STORED, {"w"})


def test_a_weight_that_was_folded_away_is_refused_and_an_unused_one_is_not() -> None:
    model = model_with(torch.zeros(2, 3), name="folded")
    with pytest.raises(
        regplug.ExportError,
        match=r"^program 'onnx': tensor 'w': expected a weight of the program, got none; it was folded away\.$",
    ):
        point_to_weights(model, STORED, {"w"})
    point_to_weights(model, STORED, set())
    assert model.graph.initializer[0].raw_data  # another constant of the graph stays


def test_an_exporter_that_folds_weights_is_noticed(
    source_of: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(24, 5))

        def forward(self, registers: Tensor) -> Tensor:
            return registers.mean(1) @ self.weight.exp()

    source = source_of(Transposed(), 5)
    assert make_model(export_graph("onnx", source.module, source), source, 20)
    real = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kw: real(*args, **(kw | {"optimize": True})))
    with pytest.raises(regplug.ExportError, match=r"^program 'onnx': tensor 'weight': expected .*folded away"):
        make_model(export_graph("onnx", source.module, source), source, 20)


def test_traces_of_the_exporter_are_removed_at_any_depth() -> None:
    model = model_with(torch.zeros(2, 3))
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["z"], doc_string="secret")], "b", [], [])
    branch.node[0].metadata_props.add(key="k", value="secret")
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))
    model.graph.input[0].metadata_props.add(key="k", value="secret")
    model.metadata_props.add(key="k", value="secret")
    strip(model)
    data = model.SerializeToString()
    for trace in (b"secret", b"model.py", b"somebody"):
        assert trace not in data
    assert [node.op_type for node in model.graph.node] == ["MatMul", "If"]


def test_slices_of_everything_are_removed_and_others_stay(source_of: Callable[..., Source]) -> None:
    class Sliced(nn.Module):
        def forward(self, registers: Tensor) -> Tensor:
            return registers[:, 1:3, ::2].flatten(1) + registers[:, :, :][:, :2, 12:].flatten(1)

    source = source_of(Sliced(), 24)
    graph = export_graph("onnx", source.module, source)
    wanted = source.module(source.example)

    def slices() -> int:
        return sum(node.target is torch.ops.aten.slice.Tensor for node in graph.graph.nodes)

    before = slices()
    drop_whole_slices(graph)
    assert before > slices() == 4
    assert torch.equal(graph.module()(source.example), wanted)
    model = onnx.load_from_string(make_model(graph, source, 20))
    assert [node.op_type for node in model.graph.node].count("Slice") == 4


def test_a_module_that_returns_a_slice_of_everything_is_exported(source_of: Callable[..., Source]) -> None:
    class Whole(nn.Module):
        def forward(self, registers: Tensor) -> Tensor:
            return registers.flatten(1)[:]

    source = source_of(Whole(), 96)
    assert make_model(export_graph("onnx", source.module, source), source, 20)


def test_used_weights_are_those_that_an_output_depends_on(source_of: Callable[..., Source]) -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Parameter(torch.randn(24))
            self.unused = nn.Parameter(torch.randn(24))
            self.register_buffer("counted", torch.ones(24))
            self.register_buffer("result_unused", torch.ones(24))

        def forward(self, registers: Tensor) -> Tensor:
            self.result_unused * 2
            return registers.mean(1) * self.used + self.counted

    source = source_of(Partly(), 24)
    assert used_weights(export_graph("onnx", source.module, source)) == {"used", "counted"}


@pytest.mark.parametrize("reduce", [torch.amax, torch.amin])
@pytest.mark.parametrize("place", [0, 2, -1])
def test_a_nan_anywhere_is_the_maximum_and_the_minimum(
    source_of: Callable[..., Source], reduce: Callable[..., Tensor], place: int
) -> None:
    class Extreme(nn.Module):
        def forward(self, registers: Tensor) -> Tensor:
            return reduce(registers, 1)

    source = source_of(Extreme(), 24)
    model = onnx.load_from_string(make_model(export_graph("onnx", source.module, source), source, 20))
    assert [node.op_type for node in model.graph.node].count("IsNaN") == 1
    given = torch.randn(2, 4, 24)
    given[0, place, 3] = torch.nan
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {model.graph.input[0].name: given.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), reduce(given, 1), equal_nan=True)
    assert torch.from_numpy(got).isnan().sum() == 1
