"""Model libraries in a C++ process: the symbols they bind, and what remains after their bundle is closed."""

import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from support.consumer import built, check_golden, conditioner, readout
from support.damage import repin

import regplug

pytestmark = pytest.mark.compiler

LIBRARY = "program.aotinductor.x86-64-v3.so"
FROZEN = Path(__file__).parents[1] / "data" / "format-1" / "readout"  # a library that exports all its symbols
MOVED_FROM = "bundle: expected an open bundle, got one that was moved from."


@pytest.fixture(scope="module")
def programs():
    return built()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    # two programs that other tests compile, too
    regplug.export(*readout("compress-concat"), folder / "compress-concat", backends=["aotinductor"])
    regplug.export(*conditioner("prefix"), folder / "film", backends=["aotinductor"])
    shutil.copytree(FROZEN, folder / "frozen")
    return folder


@pytest.mark.parametrize("way", ["opened", "preloaded"])
@pytest.mark.parametrize(("one", "other"), [("film", "compress-concat"), ("frozen", "film")])
def test_a_model_library_in_the_global_scope_does_not_replace_a_bundles_code(programs, bundles, one, other, way):
    for mine, library in [(one, other), (other, one)]:
        path = bundles / library / LIBRARY
        arguments = ["--global", path] if way == "opened" else []
        env = {**os.environ, "LD_PRELOAD": str(path)} if way == "preloaded" else None
        assert check_golden(programs / "regplug_aoti_golden", bundles / mine, *arguments, env=env)["ok"]


def test_no_symbol_of_a_library_is_bound_to_the_global_scope(programs, bundles, tmp_path):
    """A preloaded library has each function of the frozen library, and each ends the process."""
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", FROZEN / LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    names = re.findall(r" [TW] (_ZNK?5torch12aot_inductor\w+)$", listed, re.MULTILINE)
    assert [name for name in names if "8run_impl" in name]
    lines = [f".globl {name}\n.type {name}, @function\n{name}: ud2" for name in names]
    (tmp_path / "taken.s").write_text("\n".join([".text", *lines, '.section .note.GNU-stack,"",@progbits', ""]))
    command = ["c++", "-shared", "-o", tmp_path / "taken.so", tmp_path / "taken.s"]
    subprocess.run(command, check=True)
    arguments = [bundles / "frozen", "--global", tmp_path / "taken.so"]
    assert check_golden(programs / "regplug_aoti_golden", *arguments)["ok"]


def unloadable(library):
    """The library without what keeps it loaded: process-wide unique symbols and thread-exit destructors."""
    data = bytearray(library)
    [sections] = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, sections + size * index) for index in range(count)]
    [symbols] = [header for header in headers if header[1] == 11]
    [versions] = [header for header in headers if header[1] == 0x6FFFFFFF]
    names = headers[symbols[6]]
    for index in range(symbols[5] // 24):
        entry = symbols[4] + 24 * index
        if data[entry + 4] >> 4 == 10:  # unique becomes weak
            data[entry + 4] = 2 << 4 | data[entry + 4] & 15
        name = names[4] + struct.unpack_from("<I", data, entry)[0]
        if data[name:].startswith(b"__cxa_thread_atexit\0"):  # becomes a function of any version that does nothing
            data[name : name + 7] = b"getpid\0"
            struct.pack_into("<H", data, versions[4] + 2 * index, 1)
    return bytes(data)


def copies(bundle, folder, library, count):
    """Bundles with distinct libraries."""
    made = []
    for index in range(count):
        made.append(shutil.copytree(bundle, folder / str(index)))
        (made[-1] / LIBRARY).write_bytes(library + index.to_bytes(2, "little"))
        repin(made[-1])
    return made


def life(programs, *bundles):
    done = subprocess.run([programs / "regplug_aoti_life", *bundles], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert "error" not in report, report
    return report


def test_a_library_is_unloaded_with_its_last_bundle(programs, bundles, tmp_path):
    library = unloadable((bundles / "compress-concat" / LIBRARY).read_bytes())
    report = life(programs, *copies(bundles / "compress-concat", tmp_path, library, 50))
    assert report["before"]["mappings"] == 0
    assert report["after"] == report["before"]
    assert report["outlives"]


def test_a_library_that_the_dynamic_linker_keeps_is_reused(programs, bundles, tmp_path):
    [first, second] = copies(bundles / "frozen", tmp_path, (bundles / "frozen" / LIBRARY).read_bytes(), 2)
    once, often = (life(programs, first, *[second] * count) for count in (1, 20))
    assert often["after"] == once["after"]
    assert often["after"]["descriptors"] == often["before"]["descriptors"] + 1
    assert often["outlives"]


def test_a_file_size_limit_and_a_moved_from_bundle_are_reported_as_errors(programs, bundles):
    folder = bundles / "compress-concat"
    report = life(programs, folder)
    assert report["limited"] == f"bundle {folder}: {LIBRARY}: in memory: File too large."
    assert report["moved_from"] == [MOVED_FROM, MOVED_FROM, MOVED_FROM, ""]


def test_a_lack_of_memory_is_an_error_and_the_process_continues(programs, bundles):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # OpenMP ends a process that cannot have its threads
    command = [programs / "regplug_aoti_life", "--starved", bundles / "compress-concat"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    endings = json.loads(done.stdout)
    assert endings["died"] == 0
    assert endings["refused"] > 10
    assert endings["ok"] > 5
