"""A machine without torch: Python, NumPy and the wheel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import regplug

README = Path(__file__).resolve().parents[1] / "README.md"
pytestmark = [pytest.mark.packaging, pytest.mark.compiler]

RUN = """
import sys
import numpy
import regplug_runtime
with regplug_runtime.open(sys.argv[1]) as bundle:
    numpy.save(sys.argv[3], bundle.run(numpy.load(sys.argv[2])))
print(sorted({"torch", "regplug", "safetensors", "ml_dtypes"} & set(sys.modules)))
"""


def given(*sizes: int) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(3))


def test_a_readout_gives_what_torch_gives(bundle, clean_python, tmp_path):
    registers = given(5, 4, 24)
    np.save(tmp_path / "given.npy", registers.numpy())
    done = clean_python(RUN, bundle, tmp_path / "given.npy", tmp_path / "made.npy")
    assert done.stdout == "[]\n"
    wanted = regplug.load(bundle, program="aotinductor")(registers)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "made.npy")), wanted)


def test_torch_is_not_there(clean_python):
    done = clean_python("import torch", check=False)
    assert "No module named 'torch'" in done.stderr


FILM = """
import sys
import numpy
import regplug_runtime
pairs = regplug_runtime.open(sys.argv[1]).run_film(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], numpy.stack([numpy.stack(pair) for pair in pairs]))
"""


def test_a_conditioner_gives_what_torch_gives(film_bundle, clean_python, tmp_path):
    tokens = given(3, 9, 24)
    np.save(tmp_path / "given.npy", tokens.numpy())
    clean_python(FILM, film_bundle, tmp_path / "given.npy", tmp_path / "made.npy")
    pairs = regplug.load(film_bundle, program="aotinductor")(tokens)
    wanted = torch.stack([torch.stack(pair) for pair in pairs])
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "made.npy")), wanted)


REFUSED = """
import sys
import regplug_runtime
try:
    regplug_runtime.open(sys.argv[1])
except regplug_runtime.BundleError as error:
    print(error)
"""


def test_a_bundle_in_bfloat16_says_that_it_needs_ml_dtypes(bfloat16_bundle, clean_python):
    assert clean_python(REFUSED, bfloat16_bundle).stdout == (
        f"bundle {bfloat16_bundle}: expected ml_dtypes for arrays of bfloat16, got none; pip install ml_dtypes.\n"
    )


BFLOAT16 = """
import sys
sys.path.append(sys.argv[4])
import ml_dtypes
import numpy
import regplug_runtime
bundle = regplug_runtime.open(sys.argv[1])
made = bundle.run(numpy.load(sys.argv[2]).astype(ml_dtypes.bfloat16))
numpy.save(sys.argv[3], made.astype(numpy.float32))
try:
    bundle.run(numpy.load(sys.argv[2]))
except regplug_runtime.BundleError as error:
    print(made.dtype, error)
"""


@pytest.mark.skipif(find_spec("ml_dtypes") is None, reason="ml_dtypes is not installed")
def test_a_bundle_in_bfloat16_takes_and_gives_arrays_of_ml_dtypes(bfloat16_bundle, clean_python, tmp_path):
    registers = given(2, 4, 24).bfloat16()
    np.save(tmp_path / "given.npy", registers.float().numpy())
    package = find_spec("ml_dtypes").submodule_search_locations[0]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "ml_dtypes").symlink_to(package)
    done = clean_python(BFLOAT16, bfloat16_bundle, tmp_path / "given.npy", tmp_path / "made.npy", tmp_path / "site")
    assert done.stdout == "bfloat16 program 'aotinductor': expected dtype bfloat16, got float32.\n"
    wanted = regplug.load(bfloat16_bundle, program="aotinductor")(registers).float()
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "made.npy")), wanted, rtol=2**-6, atol=2**-6)


WORKERS = """
import multiprocessing
import pickle
import sys
import threading
import numpy
import regplug_runtime

def first(bundle):
    return float(bundle.run(numpy.ones((2, 4, 24), numpy.float32))[1, 5])

if __name__ == "__main__":
    bundle = regplug_runtime.open(sys.argv[1])
    wanted = first(bundle)
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(method, pool.map(first, [bundle] * 4) == [wanted] * 4)
    found = []
    threads = [threading.Thread(target=lambda: found.extend(first(bundle) for _ in range(200))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("threads", found == [wanted] * 1600)
"""


def test_workers_that_are_spawned_or_forked_and_threads_give_the_same(bundle, clean_python, tmp_path):
    (tmp_path / "workers.py").write_text(WORKERS)
    done = clean_python(f"import runpy; runpy.run_path({str(tmp_path / 'workers.py')!r}, run_name='__main__')", bundle)
    assert done.stdout == "spawn True\nfork True\nthreads True\n"


FORKED = """
import os
import sys
import numpy
import regplug_runtime
bundle = regplug_runtime.open(sys.argv[1])
given = numpy.ones((2, 4, 24), numpy.float32)
wanted = bundle.run(given)
child = os.fork()
if not child:
    same = numpy.array_equal(bundle.run(given), wanted)
    os._exit(0 if same and numpy.array_equal(regplug_runtime.open(sys.argv[1]).run(given), wanted) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_uses_the_parents_bundle_and_opens_its_own(bundle, clean_python):
    assert clean_python(FORKED, bundle).stdout == "0\n"


LATE = """
import sys
import numpy
import regplug_runtime
kept = regplug_runtime.open(sys.argv[1])
array = kept.run(numpy.ones((2, 4, 24), numpy.float32))
sys.modules["kept"] = kept
"""


def test_a_process_ends_quietly_with_a_bundle_and_an_array_that_nobody_freed(bundle, clean_python):
    done = clean_python(LATE, bundle)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_copied_bundle_is_pinned_by_its_digest(bundle, clean_python, tmp_path):
    shutil.copytree(bundle, tmp_path / "b")
    code = "import sys, regplug_runtime; print(regplug_runtime.open(sys.argv[1], digest=sys.argv[2]).digest)"
    digest = regplug.load(bundle, program="aotinductor").digest
    assert clean_python(code, tmp_path / "b", digest).stdout.strip() == digest
    done = clean_python(code, tmp_path / "b", "0" * 64, check=False)
    wanted = f"bundle {tmp_path / 'b'}: manifest.json: sha256 is {digest}, pinned is {'0' * 64}."
    assert done.stderr.splitlines()[-1] == f"regplug_runtime.errors.BundleError: {wanted}"


def test_the_two_programs_of_the_readme_run(clean_python, tmp_path):
    export, use = re.findall(r"^```python\n(.+?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    change_folder = f"import os; os.chdir({str(tmp_path)!r})\n"
    subprocess.run([sys.executable, "-c", change_folder + export], check=True)
    done = clean_python(change_folder + use)
    assert done.stdout.startswith("<Bundle 'bundle': readout regplug:compress-concat, registers [B, 4, 384], float32, ")
