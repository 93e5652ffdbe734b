"""Model libraries share a process: none calls another's code, and each is freed with its last user."""

import itertools
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from support.damage import repin
from support.readouts import SIZES

import regplug
from regplug.backends import aotinductor, cache, compiling, model_library

STRATEGIES = {"mean": {}, "pool": {}, "compress-concat": {"compressed_dim": 6}}  # other tests compile them, too
LIBRARY = "program.aotinductor.x86-64-v3.so"
FROZEN = Path(__file__).parents[1] / "data" / "format-1" / "readout"


def write(folder, strategy):
    spec = regplug.resolve(strategy, **SIZES, **STRATEGIES[strategy])
    regplug.export(spec, spec.build(), folder, backends=["aotinductor"])
    return folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A bundle of each strategy."""
    folder = tmp_path_factory.mktemp("bundles")
    return {strategy: write(folder / strategy, strategy) for strategy in STRATEGIES}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A bundle whose library exports all that it defines, as those of format 1 may."""
    folder = tmp_path_factory.mktemp("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGPLUG_CACHE_DIR", str(cache.cache_folder() / "old"))
        patch.setattr(compiling, "SYMBOL_VERSIONS", "{ global: *; };\n")
        patch.setattr(compiling, "LINKER_FLAGS", ("-Wl,-s", "-Wl,-z,noexecstack", "-Wl,--build-id=none"))
        patch.setattr(compiling, "SOURCE_EDIT", "")
        patch.setattr(aotinductor, "check_library", lambda owner, data, machine: None)
        return write(folder / "pool", "pool")


PAIRS = """
import ctypes, sys, torch, regplug
for first, second in zip(sys.argv[1::2], sys.argv[2::2]):
    ctypes.CDLL(f"{first}/program.aotinductor.x86-64-v3.so", mode=ctypes.RTLD_GLOBAL)
    program, module = regplug.load(second, program="aotinductor"), regplug.load(second)
    given = torch.randn(3, 4, program.manifest.hidden_dim)
    with torch.no_grad():
        torch.testing.assert_close(program(given), module(given))
    del program
    print("right")
"""


def right(*folders):
    """How many of the pairs gave right numbers, the first library of each being in the global scope."""
    done = subprocess.run([sys.executable, "-c", PAIRS, *folders], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.count("right")


@pytest.mark.torture
@pytest.mark.compiler
def test_a_program_runs_its_own_code_with_any_model_library_in_the_global_scope(bundles, old):
    everyone = [*bundles.values(), FROZEN]
    pairs = list(itertools.permutations(everyone, 2))
    assert right(*itertools.chain(*pairs)) == len(pairs) == 12
    assert right(old, FROZEN) == right(FROZEN, old) == right(old, bundles["mean"]) == right(bundles["mean"], old) == 1


def held():
    """Descriptors and mappings of this process, of model libraries."""
    paths = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    mapped = Path("/proc/self/maps").read_text().count("memfd:regplug-program")
    return sum("memfd:regplug-program" in path for path in paths), mapped


@pytest.mark.compiler
def test_a_dropped_program_leaves_no_descriptor_and_no_mapping(bundles, tmp_path):
    before = held()
    folder = shutil.copytree(bundles["pool"], tmp_path / "b")
    data = (folder / LIBRARY).read_bytes()
    for number in range(50):
        (folder / LIBRARY).write_bytes(data + number.to_bytes(8, "little"))  # another digest, the same code
        repin(folder)
        program = regplug.load(folder, program="aotinductor")
        assert held()[0] == before[0] + 1
        torch.testing.assert_close(program(torch.ones(2, 4, 24)), torch.ones(2, 24))
        del program
        assert held() == before


@pytest.mark.compiler
def test_a_shared_library_lives_as_long_as_its_last_program(bundles):
    before = held()
    first, second = (regplug.load(bundles["mean"], program="aotinductor") for _ in range(2))
    assert held()[0] == before[0] + 1
    del first
    assert held()[0] == before[0] + 1
    torch.testing.assert_close(second(torch.ones(2, 4, 24)), torch.ones(2, 24))
    del second
    assert held() == before


@pytest.mark.compiler
def test_a_library_that_stays_mapped_keeps_its_descriptor_and_is_reused(bundles):
    """The frozen one exports C++ names, as the libraries of the first releases do, and the linker keeps it for them."""
    module = regplug.load(FROZEN)
    regplug.load(FROZEN, program="aotinductor")
    descriptors, mappings = held()
    assert descriptors >= 1
    assert mappings >= 1
    frozen, given = torch.randn(2, 4, 6), torch.randn(2, 4, 24)
    for _ in range(20):
        torch.testing.assert_close(regplug.load(FROZEN, program="aotinductor")(frozen), module(frozen))
        # the same number would give the mapped library instead of this one
        torch.testing.assert_close(regplug.load(bundles["mean"], program="aotinductor")(given), given.mean(1))
        assert held() == (descriptors, mappings)


@pytest.mark.compiler
def test_a_program_dropped_while_another_is_opened_is_freed_afterwards(bundles):
    before = held()
    program = regplug.load(bundles["mean"], program="aotinductor")
    opening, go_on = threading.Event(), threading.Event()

    def hold():
        with model_library.LOADING:
            opening.set()
            go_on.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    opening.wait()
    del program
    assert held()[0] == before[0] + 1
    go_on.set()
    thread.join()
    regplug.load(bundles["compress-concat"], program="aotinductor")
    assert held() == before


@pytest.mark.compiler
def test_a_process_with_programs_in_globals_cycles_and_threads_exits_cleanly(bundles):
    code = f"""
import sys, threading, torch, regplug
program = regplug.load({str(bundles["pool"])!r}, program="aotinductor")
cycle = [regplug.load({str(bundles["mean"])!r}, program="aotinductor")]
cycle.append(cycle)
del cycle
sys.kept = regplug.load({str(FROZEN)!r}, program="aotinductor")
def work(own):
    own(torch.ones(2, 4, 24))
    ran.set()
    threading.Event().wait()
ran = threading.Event()
own = regplug.load({str(bundles["compress-concat"])!r}, program="aotinductor")
threading.Thread(target=work, args=[own], daemon=True).start()
del own
ran.wait()
print("end")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.compiler
def test_threads_that_open_run_and_drop_programs_get_right_numbers_and_leak_nothing(bundles):
    before = held()
    modules = {strategy: regplug.load(folder) for strategy, folder in bundles.items()}
    wrong = []

    def work(strategy):
        for _ in range(25):
            given = torch.randn(2, 4, 24)
            program = regplug.load(bundles[strategy], program="aotinductor")
            with torch.no_grad():
                if not torch.allclose(program(given), modules[strategy](given), atol=1e-5):
                    wrong.append(strategy)

    threads = [threading.Thread(target=work, args=[strategy]) for strategy in bundles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    regplug.load(bundles["compress-concat"], program="aotinductor")
    assert held() == before
