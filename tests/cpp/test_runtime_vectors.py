"""The vector functions that programs without libtorch call, compared with torch's in float64."""

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.consumer import built_without_libtorch

import regplug
from regplug.backends.cpu import cpu_flags

pytestmark = pytest.mark.compiler

SOURCES = Path(regplug.__file__).parent / "share" / "regplug-runtime"
LINE = re.compile(
    r"^REGPLUG_VECTOR(_2)?\w*\(__m(256|512)d?, (float|double), \d+, \"(\w+)\", (\w+), (\w+)\)", re.MULTILINE
)
PRESENT = cpu_flags().present
FUNCTIONS = [one for one in LINE.findall((SOURCES / "vector_functions.inc").read_text("utf-8")) if one[3] in PRESENT]
INFINITY = float("inf")
SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    9.0,
    -9.0,
    88.0,
    -104.0,
    709.0,
    -746.0,
    -90.0,
    -100.0,
    -740.0,
    1e-38,
    1e38,
    INFINITY,
    -INFINITY,
    float("nan"),
]
LIMIT = {"lgamma": 100.0}  # units in the last place: torch itself is some 50 off beside the zeros of lgamma


@pytest.fixture(scope="module")
def library():
    return ctypes.CDLL(str(built_without_libtorch() / "libruntime_functions.so"))


def samples(dtype, seed):
    """Numbers of all sizes: any bits, numbers near 1, and special ones."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    limits = torch.iinfo(bits)
    anything = torch.randint(limits.min, limits.max, (20_000,), generator=generator, dtype=bits).view(dtype)
    near = torch.randn(20_000 - 1 - len(SPECIAL), generator=generator, dtype=dtype) * 3
    chosen = torch.cat([anything, near, torch.tensor([*SPECIAL, SPECIAL[seed]], dtype=dtype)])
    return chosen if seed == 0 else chosen[torch.randperm(len(chosen), generator=generator)]


def worst_error(expected, got):
    """The largest difference, in units in the last place of what is right."""
    finite = torch.finfo(got.dtype)
    right = expected.to(got.dtype)
    same = (right == got) | (right.isnan() & got.isnan())
    unit = finite.eps * 2.0 ** (torch.frexp(right.abs().clamp(min=finite.tiny)).exponent.double() - 1)
    error = (got.double() - expected.double()).abs() / unit
    return torch.where(same, 0.0, error.nan_to_num(nan=float("inf"))).max().item()


def worst_of(library, line, function):
    two, bits, number, _, name, _ = line
    dtype = {"float": torch.float32, "double": torch.float64}[number]
    inputs = [samples(dtype, seed) for seed in range(2 if two else 1)]
    out = torch.empty_like(inputs[0])
    arrays = (ctypes.c_void_p * 3)(*(tensor.data_ptr() for tensor in (*inputs, out)))
    count = ctypes.c_size_t(out.nbytes * 8 // int(bits))
    library.runtime_apply(name.encode(), int(number == "double"), int(bits) // 8, arrays, int(bool(two)), count)
    given = inputs if name.startswith("Sleef_nextafter") else [tensor.double() for tensor in inputs]
    return worst_error(function(*given), out)


def remainder(one, other):
    """NumPy's, as torch's fmod is not exact for large quotients."""
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(np.fmod(one.numpy(), other.numpy()))


@pytest.mark.parametrize("line", FUNCTIONS, ids=lambda line: line[4])
def test_a_vector_function_is_right_for_every_number(library, line):
    function = remainder if line[5] == "fmod" else getattr(torch, line[5])
    assert worst_of(library, line, function) < LIMIT.get(line[5], 5.0)


def test_another_function_is_seen(library):
    assert worst_of(library, FUNCTIONS[0], torch.asin) > 5
