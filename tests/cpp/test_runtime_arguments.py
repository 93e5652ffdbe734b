"""The runtime's functions refuse arguments that contradict each other, with a reason, and never end the process."""

import ctypes
import functools
import resource
import subprocess

import pytest
import torch
from support.consumer import built_without_libtorch
from support.runtime_functions import Runtime

pytestmark = pytest.mark.compiler

HUGE = 2**62
NO_TENSOR = "expected a tensor, got null"
LARGE = "expected sizes and strides of a tensor in memory, got larger ones"
NEGATIVE = "expected sizes and strides from 0 on, got negative ones"
OFFSET = "expected an offset in memory, got another"
BEYOND = "expected a view inside the tensor, got one beyond it"
IMAGE = "convolution: expected an image of at least the kernel's size, got a smaller one"
SETTINGS = "convolution: expected a stride, padding and dilation for each dimension, got others"
BIAS = "convolution: expected a bias that fits the weight, got another"
UNFIT = "convolution: expected an input [B, C, ...] and a weight that fit, got others"


@pytest.fixture(scope="module")
def runtime():
    return Runtime(built_without_libtorch() / "libruntime_functions.so")


def numbers(*values):
    return (ctypes.c_int64 * len(values))(*values)


def refused(runtime, name, *arguments, results=1):
    """The reason that a call gives; it makes nothing."""
    made = [ctypes.c_void_p() for _ in range(results)]
    assert runtime.call(f"aoti_torch_{name}", *arguments, *map(ctypes.byref, made)) == 1
    assert [one.value for one in made] == [None] * results
    return runtime.library.runtime_error().decode()


@pytest.mark.parametrize(
    ("sizes", "strides", "reason"),
    [
        ((0, -1), (1, 1), NEGATIVE),  # of an empty tensor, too
        ((2, 2), (1, -1), NEGATIVE),
        ((HUGE, 2), (0, 1), LARGE),
        ((2**40, 2**40), (0, 0), LARGE),  # one item in memory, but too many to count
        ((2, 2), (HUGE, HUGE), LARGE),
        ((0, 100), (1, HUGE), LARGE),
        ((2**57,), (1,), "expected enough memory, got none."),
    ],
)
def test_sizes_and_strides_that_no_tensor_has_are_refused(runtime, sizes, strides, reason):
    shape = (ctypes.c_int64(len(sizes)), numbers(*sizes), numbers(*strides))
    assert refused(runtime, "empty_strided", *shape, 1, 0, 0) == reason
    assert refused(runtime, "empty_strided", *shape, 10, 0, 0) == "expected a dtype of safetensors, got another"


def test_memory_that_does_not_hold_the_tensor_is_refused(runtime):
    data = ctypes.create_string_buffer(64)
    shape = (ctypes.c_int64(1), numbers(2), numbers(1))
    for offset in (-1, HUGE, 2**63 - 1):
        given = (data, *shape, ctypes.c_int64(offset), 1, 0, 0)
        assert refused(runtime, "create_tensor_from_blob", *given) == OFFSET
    assert refused(runtime, "create_tensor_from_blob", None, *shape, ctypes.c_int64(0), 1, 0, 0).endswith("got null")
    view = (runtime.handle(torch.zeros(4)), *shape)
    for offset in (-1, 3, HUGE, 2**63 - 1, -(2**63)):
        assert refused(runtime, "_reinterpret_tensor", *view, ctypes.c_int64(offset)) == BEYOND


def test_null_is_refused_in_place_of_every_tensor(runtime):
    tensor = runtime.handle(torch.ones(2, 2))
    for name in ("new_tensor_handle", "clone", "get_data_ptr", "get_sizes", "get_strides", "get_dtype"):
        assert refused(runtime, name, None) == NO_TENSOR
        assert runtime.call(f"aoti_torch_{name}", tensor, None) == 1
    for given in ((None, tensor, tensor), (tensor, None, tensor), (tensor, tensor, None)):
        for name in ("cpu_mm_out", "cpu_bmm_out"):
            assert refused(runtime, name, *given, results=0) == NO_TENSOR
        attention = (*given, ctypes.c_double(0), 0, None, None)
        name = "cpu__scaled_dot_product_flash_attention_for_cpu"
        assert refused(runtime, name, *attention, results=2) == NO_TENSOR
    assert refused(runtime, "empty_strided", ctypes.c_int64(1), None, None, 1, 0, 0).endswith("got null")


def test_an_attention_of_integers_makes_nothing(runtime):
    given = (ctypes.c_int64(4), numbers(1, 1, 1, 1), numbers(1, 1, 1, 1), 4, 0, 0)
    integers = ctypes.c_void_p()
    assert not runtime.call("aoti_torch_empty_strided", *given, ctypes.byref(integers))
    name = "cpu__scaled_dot_product_flash_attention_for_cpu"
    said = refused(runtime, name, *[integers] * 3, ctypes.c_double(0), 0, None, None, results=2)
    assert said == "attention: expected floats, got another dtype"


def convolution(image=(1, 2, 3, 3), weight=(2, 2, 2, 2), bias=None, groups=1, **settings):
    """The arguments of a convolution; it works if none is given."""
    lists = [settings.get(name, (least, least)) for name, least in (("stride", 1), ("padding", 0), ("dilation", 1))]
    return torch.zeros(image), torch.zeros(weight), bias, [*lists, (0, 0)], groups


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"image": (1, 2, 3, 3), "weight": (2, 2, 4, 4), "stride": (2, 2)}, IMAGE),
        ({"weight": (2, 2, 0, 2)}, IMAGE),
        ({"dilation": (HUGE // 8, 1)}, IMAGE),
        ({"stride": (1, 1, 1)}, SETTINGS),  # more than there are dimensions
        ({"stride": (0, 1)}, SETTINGS),
        ({"padding": (-1, 0)}, SETTINGS),
        ({"padding": (0, HUGE)}, SETTINGS),
        ({"padding": (HUGE // 8, 0)}, LARGE),
        ({"bias": torch.zeros(1)}, BIAS),
        ({"bias": torch.zeros(())}, BIAS),
        ({"bias": torch.zeros(2, dtype=torch.float64)}, BIAS),
        ({"groups": 0}, UNFIT),
        ({"groups": 2**63 - 1}, UNFIT),
    ],
)
def test_a_convolution_that_does_not_fit_is_refused(runtime, changed, reason):
    def arguments(image, weight, bias, lists, groups):
        pointer = None if bias is None else ctypes.byref(runtime.handle(bias))
        pairs = [(numbers(*values), ctypes.c_int64(len(values))) for values in lists]
        (stride, padding, dilation, output_padding) = pairs
        settings = (*stride, *padding, *dilation, 0, *output_padding)
        return runtime.handle(image), runtime.handle(weight), pointer, *settings, ctypes.c_int64(groups)

    made = ctypes.c_void_p()
    name = "aoti_torch_cpu_convolution"
    assert not runtime.call(name, *arguments(*convolution()), ctypes.byref(made))
    assert runtime.tensor(made, torch.float32).shape == (1, 2, 2, 2)
    assert refused(runtime, name.removeprefix("aoti_torch_"), *arguments(*convolution(**changed))) == reason


def test_a_clone_of_a_tensor_whose_items_share_memory_has_its_own_items(runtime):
    shared = torch.arange(4.0).as_strided((2, 2), (0, 3))  # four items in the memory of four
    made = ctypes.c_void_p()
    assert not runtime.call("aoti_torch_clone", runtime.handle(shared), ctypes.byref(made))
    clone = runtime.tensor(made, torch.float32)
    assert clone.stride() == (2, 1)
    assert clone.equal(shared)


def test_any_arguments_are_refused_or_served():
    """Each function does both for random arguments; ``make torture`` repeats it under sanitizers, millions of times."""
    command = [built_without_libtorch() / "fuzz_shim", "0", "2000"]
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_AS, (64 << 20, 64 << 20))
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    counts = {name: (int(refused), int(served)) for name, refused, served in map(str.split, done.stdout.splitlines())}
    assert len(counts) == 11
    assert all(refused > 50 and served > 50 for refused, served in counts.values())
