"""Programs without libtorch: what the runtime computes, how a library is bound to its functions, the C interface."""

import ctypes
import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.consumer import (
    CONSUMER,
    SITE,
    built_in_rust,
    built_without_libtorch,
    conditioner,
    installed,
    readout,
    run,
    tool,
)
from support.runtime_functions import NUMBERS, Runtime
from torch.nn import functional

import regplug
from regplug.backends.runtime import known_functions

pytestmark = pytest.mark.compiler

LIBRARY = "program.aotinductor.x86-64-v3.so"
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
SIZES = st.integers(1, 9)


@pytest.fixture(scope="module", params=["eigen", pytest.param("cblas", marks=pytest.mark.torture)])
def runtime(request):
    cblas = "ON" if request.param == "cblas" else "OFF"
    return Runtime(built_without_libtorch(cblas) / "libruntime_functions.so")


def strided(data, *sizes, dtype):
    """A random tensor whose dimensions are in any order in memory, perhaps with room between the items."""
    order = data.draw(st.permutations(range(len(sizes))))
    step = data.draw(st.sampled_from([1, 1, 2]))
    whole = torch.randn(*(sizes[i] for i in order), step).to(dtype)
    return whole[..., 0].permute(*(order.index(i) for i in range(len(sizes))))


def expanded(data, tensor):
    """The tensor, or its first item repeated in some dimensions, as learned queries are for each sample."""
    for dimension, size in enumerate(tensor.shape):
        if data.draw(st.integers(0, 4)) == 0:
            tensor = tensor.narrow(dimension, 0, 1).expand(
                *[-1] * dimension, size, *[-1] * (tensor.dim() - dimension - 1)
            )
    return tensor


dtypes = pytest.mark.parametrize("dtype", NUMBERS, ids=str)


@settings(max_examples=200)
@given(data=st.data())
def test_a_clone_is_torchs_in_values_and_layout(runtime, data):
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    given = expanded(data, strided(data, *sizes, dtype=torch.float32))
    made = ctypes.c_void_p()
    assert not runtime.call("aoti_torch_clone", runtime.handle(given), ctypes.byref(made))
    got, wanted = runtime.tensor(made, torch.float32), given.clone()
    assert got.stride() == wanted.stride()
    assert got.equal(wanted)


@dtypes
@settings(max_examples=60)
@given(data=st.data())
def test_products_are_torchs_for_any_sizes_and_strides(runtime, dtype, data):
    rows, depth, columns, batch = (data.draw(SIZES) for _ in range(4))
    one, other = strided(data, rows, depth, dtype=dtype), strided(data, depth, columns, dtype=dtype)
    out = strided(data, rows, columns, dtype=dtype)
    assert not runtime.call("aoti_torch_cpu_mm_out", *map(runtime.handle, (out, one, other)))
    torch.testing.assert_close(out, one @ other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    bias = strided(
        data, *data.draw(st.sampled_from([(columns,), (1, columns), (rows, 1), (rows, columns)])), dtype=dtype
    )
    alpha, beta = data.draw(st.sampled_from([(1.0, 1.0), (0.5, 2.0)]))
    handles = map(runtime.handle, (out, bias, one, other))
    assert not runtime.call("aoti_torch_cpu_addmm_out", *handles, ctypes.c_double(beta), ctypes.c_double(alpha))
    wanted = torch.addmm(bias.double(), one.double(), other.double(), beta=beta, alpha=alpha).to(dtype)
    torch.testing.assert_close(out, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    left, right = strided(data, batch, rows, depth, dtype=dtype), strided(data, batch, depth, columns, dtype=dtype)
    out = strided(data, batch, rows, columns, dtype=dtype)
    assert not runtime.call("aoti_torch_cpu_bmm_out", *map(runtime.handle, (out, left, right)))
    torch.testing.assert_close(out, left @ right, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    sizes = data.draw(st.sampled_from([(columns,), (rows, 1), (1, rows, columns), (batch, 1, columns), out.shape]))
    bias = strided(data, *sizes, dtype=dtype)
    handles = map(runtime.handle, (out, bias, left, right))
    assert not runtime.call("aoti_torch_cpu_baddbmm_out", *handles, ctypes.c_double(beta), ctypes.c_double(alpha))
    wanted = torch.baddbmm(bias.double(), left.double(), right.double(), beta=beta, alpha=alpha).to(dtype)
    torch.testing.assert_close(out, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_bias_times_0_is_not_read(runtime):
    out, one, other = torch.zeros(2, 2), torch.ones(2, 3), torch.ones(3, 2)
    handles = map(runtime.handle, (out, torch.full((2,), math.nan), one, other))
    assert not runtime.call("aoti_torch_cpu_addmm_out", *handles, ctypes.c_double(0), ctypes.c_double(1))
    assert out.tolist() == [[3, 3], [3, 3]]


@dtypes
@settings(max_examples=40)
@given(data=st.data())
def test_attention_is_torchs_in_values_and_layout(runtime, dtype, data):
    batch, key_heads, width = (data.draw(st.integers(1, 3)) for _ in range(3))
    heads = key_heads * data.draw(st.integers(1, 2))  # each of the keys' heads may serve several of the queries
    length, keys = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 9))
    causal = data.draw(st.booleans())
    query = expanded(data, strided(data, batch, heads, length, width, dtype=dtype))
    key, value = (strided(data, batch, key_heads, keys, width, dtype=dtype) for _ in range(2))
    mask = None
    if not causal and data.draw(st.booleans()):
        sizes = data.draw(st.sampled_from([(length, keys), (1, 1, length, keys), (batch, heads, length, keys)]))
        mask = torch.randn(*sizes).to(data.draw(st.sampled_from([dtype, torch.float32])))
        if data.draw(st.booleans()):
            mask[..., 1:] = mask[..., 1:].masked_fill(torch.rand(mask[..., 1:].shape) < 0.5, -math.inf)
    if data.draw(st.integers(0, 3)) == 0:  # in any place, also behind a mask
        broken = data.draw(st.sampled_from([key, value]))
        broken[tuple(data.draw(st.integers(0, size - 1)) for size in broken.shape)] = math.nan
    scale = data.draw(st.sampled_from([None, 0.3]))
    made, sums = ctypes.c_void_p(), ctypes.c_void_p()
    pointers = [ctypes.byref(runtime.handle(mask)) if mask is not None else None]
    pointers.append(ctypes.byref(ctypes.c_double(scale)) if scale else None)
    handles = list(map(runtime.handle, (query, key, value)))
    name = "aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu"
    code = runtime.call(
        name, *handles, ctypes.c_double(0), int(causal), *pointers, ctypes.byref(made), ctypes.byref(sums)
    )
    assert not code, runtime.library.runtime_error()
    kept = math.sqrt(1 / width) if scale is None else scale
    key, value = (tensor.double().repeat_interleave(heads // key_heads, dim=1) for tensor in (key, value))
    scores = kept * (query.double() @ key.transpose(-2, -1))
    if causal:
        scores = scores.masked_fill(~torch.ones(length, keys, dtype=torch.bool).tril(), -torch.inf)
    if mask is not None:
        scores = scores + mask.double()
    got = runtime.tensor(made, dtype)
    wanted = (scores.softmax(-1) @ value).to(dtype)
    torch.testing.assert_close(got, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], equal_nan=True)
    assert got.stride() == torch.empty_like(query).stride()
    log_sums = runtime.tensor(sums, torch.float64 if dtype == torch.float64 else torch.float32)
    sums = scores.logsumexp(-1)
    torch.testing.assert_close(log_sums.double(), sums, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], equal_nan=True)


@dtypes
@pytest.mark.parametrize("place", range(9))
def test_attention_to_nothing_but_a_nan_is_nan(runtime, dtype, place):
    query, key, value = (torch.randn(1, 1, 9, 8).to(dtype) for _ in range(3))
    key[0, 0, place, 2] = math.nan
    mask = torch.full((9, 9), -math.inf).to(dtype)
    mask[:, place] = 0
    made, sums = ctypes.c_void_p(), ctypes.c_void_p()
    name = "aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu"
    handles, masked = map(runtime.handle, (query, key, value)), ctypes.byref(runtime.handle(mask))
    assert not runtime.call(name, *handles, ctypes.c_double(0), 0, masked, None, *map(ctypes.byref, (made, sums)))
    assert runtime.tensor(made, dtype).isnan().all()


@dtypes
@settings(max_examples=60)
@given(data=st.data())
def test_convolution_is_torchs_in_values_and_layout(runtime, dtype, data):
    dimensions = data.draw(st.integers(1, 3))
    groups, batch = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    inside, outside = (groups * data.draw(st.integers(1, 3)) for _ in range(2))
    kernel = [data.draw(st.integers(1, 3)) for _ in range(dimensions)]
    stride, padding, dilation = ([data.draw(st.integers(least, 2)) for _ in range(dimensions)] for least in (1, 0, 1))
    image = torch.randn(batch, inside, *(data.draw(st.integers(5, 8)) for _ in range(dimensions))).to(dtype)
    weight = torch.randn(outside, inside // groups, *kernel).to(dtype)
    if dimensions == 2 and data.draw(st.booleans()):
        image = image.to(memory_format=torch.channels_last)
    if dimensions == 2 and data.draw(st.booleans()):
        weight = weight.to(memory_format=torch.channels_last)
    bias = torch.randn(outside).to(dtype) if data.draw(st.booleans()) else None
    lists = [(ctypes.c_int64 * dimensions)(*values) for values in (stride, padding, dilation, [0] * dimensions)]
    count, made = ctypes.c_int64(dimensions), ctypes.c_void_p()
    pointer = None if bias is None else ctypes.byref(runtime.handle(bias))
    code = runtime.call(
        "aoti_torch_cpu_convolution",
        *(runtime.handle(image), runtime.handle(weight), pointer),
        *(lists[0], count, lists[1], count, lists[2], count, 0, lists[3], count),
        *(ctypes.c_int64(groups), ctypes.byref(made)),
    )
    assert not code, runtime.library.runtime_error()
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[dimensions - 1]
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    wanted = convolve(image.double(), weight.double(), None if bias is None else bias.double(), **settings).to(dtype)
    got = runtime.tensor(made, dtype)
    torch.testing.assert_close(got, wanted, rtol=TOLERANCE[dtype], atol=4 * TOLERANCE[dtype])
    assert got.stride() == convolve(image, weight, bias, **settings).stride()


@pytest.mark.torture
def test_cmake_takes_a_cblas_library_for_products():
    linked = subprocess.run(
        ["ldd", built_without_libtorch("ON") / "regplug-run/regplug-run"], capture_output=True, text=True
    )
    assert "blas" in linked.stdout


def test_arguments_that_do_not_fit_are_refused_with_a_reason(runtime):
    a, b = torch.randn(2, 3), torch.randn(4, 5)
    out = torch.empty(2, 5)
    assert runtime.call("aoti_torch_cpu_mm_out", *map(runtime.handle, (out, a, b))) == 1
    assert runtime.library.runtime_error() == b"product: expected matrices of the same dtype that fit, got others"
    assert runtime.call("aoti_torch_cpu_mm_out", *map(runtime.handle, (out, a, torch.randn(3, 5).double()))) == 1
    made, sums = ctypes.c_void_p(), ctypes.c_void_p()
    name = "aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu"
    query, mask = torch.randn(2, 3, 4, 5), torch.zeros(4, 6)
    others = [torch.randn(*sizes) for sizes in ((2, 2, 4, 5), (1, 3, 4, 5), (2, 3, 4, 6))]
    for other in others:
        handles = map(runtime.handle, (query, other, other))
        code = runtime.call(name, *handles, ctypes.c_double(0), 0, None, None, ctypes.byref(made), ctypes.byref(sums))
        assert (code, runtime.library.runtime_error()) == (
            *(1, b"attention: expected keys and values that fit the queries, got others"),
        )
    pointer = ctypes.byref(runtime.handle(mask))
    handles = map(runtime.handle, (query, query, query))
    code = runtime.call(name, *handles, ctypes.c_double(0), 0, pointer, None, ctypes.byref(made), ctypes.byref(sums))
    assert (code, runtime.library.runtime_error()) == (
        *(1, b"attention: expected a mask of floats that fits the scores, got another"),
    )
    sizes = (ctypes.c_int64 * 2)(4, 4)
    view = (runtime.handle(a), ctypes.c_int64(2), sizes, sizes, ctypes.c_int64(0), ctypes.byref(made))
    assert runtime.call("aoti_torch__reinterpret_tensor", *view) == 1
    assert runtime.library.runtime_error() == b"expected a view inside the tensor, got one beyond it"
    sizes = (ctypes.c_int64 * 1)(2**62)
    assert runtime.call("aoti_torch_empty_strided", ctypes.c_int64(1), sizes, sizes, 1, 0, 0, ctypes.byref(made)) == 1


# ---- a library and the runtime's functions


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "b"
    regplug.export(*readout("compress-concat"), folder, backends=["aotinductor"])
    return folder


def bound(runtime, data):
    """Whether a library is bound, and the reason if not."""
    memory, error = ctypes.create_string_buffer(data, len(data)), ctypes.create_string_buffer(400)
    code = runtime.library.bind_library(memory, ctypes.c_size_t(len(data)), error, ctypes.c_size_t(400))
    return memory.raw if code == 0 else error.value.decode(errors="replace")


def test_a_bound_library_needs_no_libtorch(runtime, bundle, tmp_path):
    path = tmp_path / "bound.so"
    path.write_bytes(bound(runtime, (bundle / LIBRARY).read_bytes()))
    needed = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    assert "libstdc++" in needed
    assert "libtorch" not in needed
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True
    ).stdout
    assert "GLIBC" in undefined
    assert "aoti_torch" not in undefined


@settings(max_examples=200)
@given(data=st.data())
def test_a_damaged_library_is_bound_or_refused_with_a_reason(runtime, bundle, data):
    """A program is code, whose digest is checked first; but reading it must not end the process."""
    library = bytearray((bundle / LIBRARY).read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, 2000) | st.integers(0, len(library) - 1))
        library[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(library)) | st.integers(0, len(library)))
    said = bound(runtime, bytes(library[:cut]))
    assert isinstance(said, bytes) or said.startswith("expected ")


def test_python_knows_the_functions_that_the_runtime_has(runtime):
    assert len(known_functions()) > 150
    assert [name for name in known_functions() if not runtime.library.runtime_function(name.encode())] == []
    assert not runtime.library.runtime_function(b"aoti_torch_cpu_sort")


def test_a_library_for_another_machine_is_refused_by_its_name(runtime, bundle):
    library = bytearray((bundle / LIBRARY).read_bytes())
    library[18:20] = (183).to_bytes(2, "little")
    assert bound(runtime, bytes(library)) == "expected a library for x86-64, got one for aarch64"


# ---- the C interface


@pytest.fixture(params=["C", "Rust"])
def program(request):
    """A program that runs a bundle on ones, through the C interface."""
    return built_in_rust() if request.param == "Rust" else built_without_libtorch() / "run_in_c"


def test_a_program_in_another_language_runs_a_readout_and_a_conditioner(program, bundle, tmp_path):
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert "libregplug.so.1" in linked
    assert "torch" not in linked
    digest = regplug.verify(bundle).digest
    code, out = run(program, bundle, digest)
    assert code == 0, out
    described, line = out.splitlines()
    shapes = {"inputs": ["B", 4, 24], "outputs": ["B", 24]}
    described = json.loads(described)
    assert {name: described[name][0]["shape"] for name in shapes} == shapes
    assert (described["holds"], described["cond_dim"], described["digest"]) == ("readout", 24, digest)
    name, *numbers = line.split()
    assert name == "conditioning"
    wanted = regplug.load(bundle)(torch.ones(2, 4, 24)).flatten()
    torch.testing.assert_close(torch.tensor([float(number) for number in numbers]), wanted)

    regplug.export(*conditioner("prefix"), tmp_path / "c", backends=["aotinductor"])
    code, out = run(program, tmp_path / "c")
    assert code == 0, out
    pairs = regplug.load(tmp_path / "c")(torch.ones(2, 9, 24))
    flat = [tensor.flatten() for pair in pairs for tensor in pair]
    lines = [line.split() for line in out.splitlines()[1:]]
    assert [line[0] for line in lines] == ["gamma_0", "beta_0", "gamma_1", "beta_1"]
    for line, wanted in zip(lines, flat, strict=True):
        torch.testing.assert_close(torch.tensor([float(number) for number in line[1:]]), wanted)


def test_a_program_with_attention_of_several_queries_and_heads_runs(tmp_path):
    spec = regplug.resolve("attention", num_registers=4, hidden_dim=24, num_queries=2, num_heads=3)
    torch.manual_seed(0)
    readout = spec.build().eval()
    regplug.export(spec, readout, tmp_path / "b", backends=["aotinductor"])
    code, out = run(built_without_libtorch() / "run_in_c", tmp_path / "b")
    assert code == 0, out
    numbers = [float(number) for number in out.splitlines()[1].split()[1:]]
    torch.testing.assert_close(torch.tensor(numbers), readout(torch.ones(2, 4, 24)).detach().flatten())


def test_the_c_interface_refuses_with_the_messages_of_python(program, bundle, tmp_path):
    assert run(program) == (1, "regplug: directory: expected a pointer, got null.\n")
    for arguments in ([tmp_path / "none"], [bundle, "0" * 64], [bundle, "00"]):
        code, out = run(program, *arguments)
        with pytest.raises(regplug.RegplugError) as error:
            regplug.load(arguments[0], program="aotinductor", digest=arguments[1] if arguments[1:] else None)
        assert (code, out) == (1, f"{error.value}\n")


def test_an_installed_library_is_found_by_pkg_config(bundle, tmp_path):
    made = built_without_libtorch() / "regplug-runtime"
    subprocess.run([tool("cmake"), "--install", made, "--prefix", tmp_path / "there"], check=True, capture_output=True)
    [place] = (tmp_path / "there").rglob("pkgconfig")
    asked = ["pkg-config", "--cflags", "--libs", "regplug"]
    flags = subprocess.run(asked, env={"PKG_CONFIG_PATH": str(place)}, capture_output=True, text=True, check=True)
    source, program = CONSUMER / "runtime" / "run_in_c.c", tmp_path / "program"
    subprocess.run(["cc", source, "-o", program, *flags.stdout.split()], check=True)
    code, out = run(program, bundle, env={"LD_LIBRARY_PATH": str(place.parent)})
    assert code == 0, out


def test_the_c_library_shows_its_interface_and_nothing_else():
    path = built_without_libtorch() / "regplug-runtime" / "libregplug.so"
    listed = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    assert "regplug_open@@REGPLUG_1" in names
    assert [name for name in names if not name.startswith(("regplug_", "REGPLUG_1"))] == []


class Tensor(ctypes.Structure):
    """``regplug_tensor``."""

    _fields_ = (
        *(("name", ctypes.c_char_p), ("dtype", ctypes.c_int32), ("rank", ctypes.c_uint32)),
        *(("sizes", ctypes.c_void_p), ("strides", ctypes.c_void_p), ("data", ctypes.c_void_p)),
    )


@pytest.mark.parametrize("rank", [9, 1_000_000_000])
def test_a_rank_that_nobody_set_is_refused(bundle, rank):
    library = ctypes.CDLL(str(built_without_libtorch() / "regplug-runtime" / "libregplug.so"))
    library.regplug_open.restype = library.regplug_run.restype = ctypes.c_void_p
    library.regplug_last_error.restype = ctypes.c_char_p
    opened = ctypes.c_void_p(library.regplug_open(str(bundle).encode(), None, 0))
    sizes = (ctypes.c_int64 * 9)(*[1] * 9)
    given = Tensor(None, 1, rank, ctypes.addressof(sizes), None, None)
    assert library.regplug_run(opened, ctypes.byref(given), ctypes.c_size_t(1)) is None
    said = library.regplug_last_error().decode()
    assert said.endswith("got [1, 1, 1, 1, 1, 1, 1, 1, 1]." if rank == 9 else f"expected at most 8 sizes, got {rank}.")
    library.regplug_close(opened)


BOTH_AT_ONCE = """
import ctypes, sys, torch, regplug
library = ctypes.CDLL(sys.argv[2])
library.regplug_open.restype = ctypes.c_void_p
program = regplug.load(sys.argv[1], program="aotinductor")
opened = library.regplug_open(sys.argv[1].encode(), None, 0)  # runs a golden case
given = torch.randn(3, 4, 24)
torch.testing.assert_close(program(given), regplug.load(sys.argv[1])(given))
print(bool(opened))
"""


def test_a_process_runs_one_program_over_libtorch_and_without(bundle):
    path = built_without_libtorch() / "regplug-runtime" / "libregplug.so"
    done = subprocess.run(
        [sys.executable, "-c", BOTH_AT_ONCE, bundle, path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


# ---- CMake


def configure(tmp_path, text, *settings):
    (tmp_path / "main.cpp").write_text("int main() {}\n")
    head = "cmake_minimum_required(VERSION 3.23)\nproject(p LANGUAGES C CXX)\nadd_executable(p main.cpp)\n"
    (tmp_path / "CMakeLists.txt").write_text(head + text)
    command = [tool("cmake"), "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed()}", *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, " ".join(done.stderr.split())


def test_cmake_refuses_a_target_with_both(tmp_path):
    find = "find_package(regplug REQUIRED COMPONENTS aotinductor runtime)\n"
    both = "target_link_libraries(p PRIVATE regplug::aotinductor regplug::runtime)\n"
    code, err = configure(tmp_path, find + both)
    assert code == 1
    assert 'The INTERFACE_regplug_SHIM property of "regplug_runtime" does not agree' in err


def test_cmake_says_where_eigen_comes_from_if_there_is_none(tmp_path):
    find = "list(APPEND CMAKE_IGNORE_PATH ${IGNORED})\nfind_package(regplug REQUIRED COMPONENTS runtime)\n"
    ignored = ";".join(f"{place}/eigen3" for place in (SITE / "cmeel.prefix" / "include", "/usr/include"))
    code, err = configure(tmp_path, find, f"-DIGNORED={ignored}")
    assert code == 1
    assert "runtime: Eigen not found: install libeigen3-dev, or pip install cmeel-eigen" in err
