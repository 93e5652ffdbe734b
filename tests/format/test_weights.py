"""State dicts are written to safetensors and read back, with strict checks of the header."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load
from torch import nn

from regplug.errors import BundleError, ExportError
from regplug.format.safetensors_header import read_header
from regplug.format.weights import load_state, load_tensors, read_metadata, save_tensors, state_of

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
NAMES = st.text(st.sampled_from("abcXYZ019_.-"), min_size=1, max_size=12)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@given(st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=6))
def test_saved_tensors_are_read_back_bit_for_bit(wanted):
    state = {name: torch.randint(0, 2, shape).to(dtype) for name, (shape, dtype) in wanted.items()}
    found = load_tensors("file", save_tensors(state, {"strategy": "regplug:pool"}))
    assert sorted(found) == sorted(state)
    for name in state:
        assert found[name].dtype == state[name].dtype
        assert torch.equal(found[name], state[name])


def test_the_metadata_is_one_key_of_sorted_json_so_that_the_bytes_are_the_same_every_time():
    data = save_tensors({"w": torch.zeros(2)}, {"b": 1, "a": [2, None]})
    assert read_header("file", data)[1] == {"regplug": '{"a": [2, null], "b": 1}'}
    assert read_metadata("file", data) == {"a": [2, None], "b": 1}
    assert data == save_tensors({"w": torch.zeros(2)}, {"a": [2, None], "b": 1})


def test_a_file_that_says_nothing_of_itself_has_empty_metadata():
    assert read_metadata("file", save_tensors({"w": torch.zeros(2)})) == {}


@pytest.mark.parametrize("text", ["[1]", "no json", "3", "[" * 100_000])
def test_metadata_that_is_no_json_object_is_refused(text):
    header = json.dumps({"__metadata__": {"regplug": text}}).encode()
    data = struct.pack("<Q", len(header)) + header
    with pytest.raises(BundleError, match=r"^file: metadata: expected a JSON object"):
        read_metadata("file", data)


def test_the_strict_reader_takes_what_the_reference_writes():
    data = save_tensors({"w": torch.ones(3), "b": torch.zeros((), dtype=torch.int64)})
    assert sorted(read_header("file", data)[0]) == sorted(load(data)) == ["b", "w"]


class Keeps(nn.Module):
    """A module with an attribute that a bundle cannot hold."""

    def __init__(self, **things):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        for name, thing in things.items():
            setattr(self, name, thing)


def tied():
    module = Keeps()
    module.register_parameter("again", module.weight)
    return module


def forgetful():
    module = Keeps()
    module.register_buffer("scratch", torch.zeros(2), persistent=False)
    return module


class Sub(torch.Tensor):
    """A tensor subclass, as quantised weights are."""


UNSTORABLE = {
    "buffer 'scratch': expected a persistent buffer": forgetful(),
    "tensor 'table': expected a parameter or buffer": Keeps(table=torch.zeros(2)),
    "tied to 'again'": tied(),
    "tensor 'odd': expected a plain tensor, got Sub": Keeps(odd=nn.Parameter(torch.zeros(2).as_subclass(Sub))),
    "tensor 'weight': expected a dense real tensor": Keeps(weight=nn.Parameter(torch.zeros(2, dtype=torch.complex64))),
}


@pytest.mark.parametrize("message", UNSTORABLE)
def test_tensors_that_a_weights_file_cannot_hold_are_refused_by_name(message):
    with pytest.raises(ExportError, match=message):
        state_of("strategy 'x'", UNSTORABLE[message])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weights": torch.zeros(2, 3)}, r"expected tensors \[bias, weight\], got \[weights\]"),
        (
            {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)},
            r"'weight': expected float32 \[2, 3\], got float32 \[3, 2\]",
        ),
        (
            {"weight": torch.zeros(2, 3, dtype=torch.float64), "bias": torch.zeros(2)},
            r"'weight': expected float32 \[2, 3\], got float64 \[2, 3\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_set(state, message):
    module = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(BundleError, match=message):
        load_state("weights x", module, state)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
