"""What is refused, in the words of ``regplug.load(..., program="aotinductor")``."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from support.damage import DAMAGES, damaged_copies, repin, to_link

import regplug
import regplug_runtime
from regplug_runtime.library import Tensor, _library

pytestmark = pytest.mark.compiler


def line_of(call, *arguments, **keywords):
    with pytest.raises((regplug.RegplugError, regplug_runtime.BundleError)) as error:
        call(*arguments, **keywords)
    return str(error.value)


def both_lines(*arguments, **keywords):
    own = line_of(regplug_runtime.open, *arguments, **keywords)
    return own, line_of(regplug.load, *arguments, program="aotinductor", **keywords)


@pytest.fixture(scope="module")
def opened(bundle):
    with regplug_runtime.open(bundle) as one:
        yield one


@pytest.fixture(scope="module")
def program(bundle):
    return regplug.load(bundle, program="aotinductor")


WRONG = {
    "R": np.zeros((2, 3, 24), np.float32),
    "D": np.zeros((2, 4, 48), np.float32),
    "rank": np.zeros((4, 24), np.float32),
    "rank 0": np.zeros((), np.float32),
    "rank 4": np.zeros((1, 2, 4, 24), np.float32),
    "rank 9": np.zeros((1,) * 9, np.float32),
    "rank 32": np.zeros((1,) * 32, np.float32),
    "nothing in it": np.zeros((2, 4, 0), np.float32),
    "R and dtype": np.zeros((2, 3, 24), np.float64),
    **{
        name: np.zeros((2, 4, 24), name)
        for name in ("float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool", "uint16", "complex64")
    },
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_array_is_refused_as_the_same_tensor_is(opened, program, what):
    assert line_of(opened.run, WRONG[what]) == line_of(program, torch.from_numpy(WRONG[what]))


def test_a_wrong_array_for_a_conditioner_is_refused_as_the_same_tensor_is(film_bundle):
    program = regplug.load(film_bundle, program="aotinductor")
    with regplug_runtime.open(film_bundle) as opened:
        for sizes in ((2, 4, 24), (2, 9, 23), (9, 24)):
            array = np.zeros(sizes, np.float32)
            assert line_of(opened.run_film, array) == line_of(program, torch.from_numpy(array))


PROGRAM = "program 'aotinductor': expected"
NO_TENSOR = {
    "a list": ([[1.0]], f"{PROGRAM} a NumPy array, got list; use numpy.asarray."),
    "none": (None, f"{PROGRAM} a NumPy array, got NoneType; use numpy.asarray."),
    "a tensor": (torch.zeros(2, 4, 24), f"{PROGRAM} a NumPy array, got Tensor; use numpy.asarray."),
    "a masked array": (
        np.ma.masked_array(np.zeros((2, 4, 24), np.float32)),
        f"{PROGRAM} an array without a mask, got a masked one; use array.filled(value).",
    ),
    "objects": (np.zeros((2, 4, 24), object), f"{PROGRAM} dtype float32, got object."),
    "text": (np.zeros((2, 4, 24), "U1"), f"{PROGRAM} dtype float32, got str32."),
    "records": (np.zeros((2, 4, 24), [("x", "f4")]), f"{PROGRAM} dtype float32, got void32."),
    "the other byte order": (
        np.zeros((2, 4, 24), np.dtype("f4").newbyteorder()),
        f"{PROGRAM} dtype float32 in this machine's byte order, got {np.dtype('f4').newbyteorder().str}; use "
        "array.astype(array.dtype.newbyteorder('=')).",
    ),
    "more than the memory": (
        np.broadcast_to(np.float32(1), (2**50, 4, 24)),
        f"{PROGRAM} enough memory, got none.",
    ),
}


@pytest.mark.parametrize("what", NO_TENSOR)
def test_what_has_no_tensor_like_it_is_refused_in_one_line(opened, what):
    given, line = NO_TENSOR[what]
    assert line_of(opened.run, given) == line


@pytest.fixture(scope="module")
def damaged(bundle, tmp_path_factory):
    return damaged_copies(bundle, tmp_path_factory.mktemp("damaged"))


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_bundle_is_refused_in_the_same_words(damaged, case):
    folder, wanted = damaged[case]
    assert both_lines(folder) == (wanted, wanted)


LIBRARY = "program.aotinductor.x86-64-v3.so"
NEEDED = "GetNumInputs GetNumOutputs GetNumConstants RunSingleThreaded Delete"
FOREIGN = {
    "a C++ exception": ('throw std::runtime_error("of the program.");', "of the program."),
    "another exception": ("throw 3;", "expected a std::exception, got another type."),
    "no memory": ("throw std::bad_alloc();", "expected enough memory, got none."),
    "a function of torch": (
        "return aoti_torch_none();",
        "expected functions that regplug::runtime has, got aoti_torch_none; a program with it needs "
        f"libtorch; made with torch {torch.__version__}.",
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_program_that_fails_in_its_own_code_is_refused(bundle, tmp_path, what):
    body, line = FOREIGN[what]
    code = "#include <new>\n#include <stdexcept>\n"
    code += 'extern "C" int aoti_torch_none();\n'
    code += f'extern "C" int AOTInductorModelContainerCreateWithDevice(void**, size_t, char*, char*) {{ {body} }}\n'
    code += "".join(f'extern "C" int AOTInductorModelContainer{one}(...) {{ return 0; }}\n' for one in NEEDED.split())
    folder = shutil.copytree(bundle, tmp_path / "b")
    (tmp_path / "program.cpp").write_text(code)
    subprocess.run(["c++", "-shared", "-fPIC", "-o", folder / LIBRARY, tmp_path / "program.cpp"], check=True)
    repin(folder)
    assert line_of(regplug_runtime.open, folder) == f"bundle {folder}: {LIBRARY}: {line}"


def test_a_folder_that_is_no_bundle_is_refused_in_the_same_words(bundle, tmp_path):
    wrong = ["", tmp_path, tmp_path / "nope", bundle / "manifest.json", tmp_path / ("é" * 255), tmp_path / "\n\u202e"]
    for path in (*wrong, f"{tmp_path}\0", os.fsdecode(b"/\xff")):
        own, other = both_lines(path)
        assert own == other


def test_a_long_message_keeps_its_beginning_and_end(tmp_path):
    path = tmp_path / "é" / ("é" * 120) / ("é" * 120) / ("é" * 120) / "end"
    own, other = both_lines(path)
    assert own == other
    assert own.endswith("end: no such folder.")


def test_a_wrong_digest_is_refused_in_the_same_words(bundle):
    for digest in ("0" * 64, "", "x" * 64, "0" * 63, "é" * 64, "0" * 64 + "\n", "a\0b", "\ud800"):
        own, other = both_lines(bundle, digest=digest)
        assert own == other


def test_links_are_followed_only_if_that_is_allowed(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "b")
    to_link(folder)
    own, other = both_lines(folder)
    assert own == other
    assert regplug_runtime.open(folder, follow_links=True).holds == "readout"


def test_a_bundle_of_another_kind_says_which_method_runs_it(bundle, film_bundle):
    with regplug_runtime.open(film_bundle) as film, regplug_runtime.open(bundle) as readout:
        assert line_of(film.run, None) == f"bundle {film_bundle}: holds a conditioner; use run_film."
        assert line_of(readout.run_film, None) == f"bundle {bundle}: holds a readout; use run."


def test_a_closed_bundle_is_refused_by_every_method(bundle):
    opened = regplug_runtime.open(bundle)
    opened.close()
    opened.close()
    wanted = f"bundle {bundle}: expected an open bundle, got a closed one; open it again."
    array = np.zeros((2, 4, 24), np.float32)
    for call in (lambda: opened.run(array), lambda: opened.run_film(array), lambda: opened.reload("x")):
        assert line_of(call) == wanted
    assert line_of(opened.__reduce__) == wanted


def test_weights_that_do_not_fit_are_refused_and_the_old_ones_stay(bundle, tmp_path):
    array = np.ones((2, 4, 24), np.float32)
    with regplug_runtime.open(bundle) as opened:
        before = opened.run(array)
        (tmp_path / "w").write_bytes(b"nothing")
        for path in (tmp_path / "w", tmp_path / "none", bundle):
            assert line_of(opened.reload, path).startswith(f"weights {path}: ")
        assert line_of(opened.reload, "a\0b") == "weights a\\x00b: expected a path without NUL, got one with NUL."
        np.testing.assert_array_equal(opened.run(array), before)


def test_a_wrong_type_is_a_type_error():
    for call in (lambda: regplug_runtime.open(3), lambda: regplug_runtime.open(None)):
        with pytest.raises(TypeError):
            call()


def test_an_input_without_memory_is_refused(bundle):
    """NumPy has none of these; C may."""
    text = os.fsencode(bundle)
    handle = _library.regplug_open(text, None, 0)
    sizes = (ctypes.c_int64 * 3)(2, 4, 24)
    given = Tensor(None, 1, 3, sizes, None, None)
    assert _library.regplug_run(handle, given, 1) is None
    assert _library.regplug_last_error() == b"regplug: data: expected a pointer, got null."
    _library.regplug_close(handle)


@pytest.mark.parametrize("digest", [b"00", 5, "\ud800"])
def test_a_digest_that_is_no_text_is_refused(bundle, digest):
    with pytest.raises(regplug_runtime.BundleError, match="digest: expected (text of )?64 hexadecimal digits, got "):
        regplug_runtime.open(bundle, digest=digest)


def test_a_path_with_half_a_character_is_refused():
    with pytest.raises(regplug_runtime.BundleError, match="expected a path that a file can have, got one with half a"):
        regplug_runtime.open("a\ud800")


def test_a_bundle_opens_by_its_whole_path_in_a_folder_that_was_deleted(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    with regplug_runtime.open(bundle) as opened:
        assert opened.cond_dim == 24
