"""The C++ readers on every named case, and the runtime on random calls, under ASan and UBSan.

And the fuzzed programs detect a wrong reader, a wrong runtime and wrong checks of a call.
"""

import os
import shutil
import subprocess

import pytest
from support.consumer import CONSUMER, SITE, built_with
from support.cpp_build import HEADERS, changed_headers, compiled

from torture import fuzzing
from torture.verdicts import ACCEPTED, in_python

CHECK = "if (end != data.size())"


def read_all(reader, program, folder):
    files = sorted(fuzzing.seeds(reader, folder).iterdir())
    done = subprocess.run(
        [program, *files], capture_output=True, text=True, env={**os.environ, **fuzzing.ENVIRONMENT}, check=False
    )
    return done.returncode, done.stdout.strip() == str(len(files)), done.stderr


SANITIZERS = ["-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def corpus_reader(reader, *flags, headers=HEADERS):
    flags += ("-DMANIFEST",) if reader == "manifest" else ()
    return compiled("fuzz.cpp", "-O0", "-DCORPUS", *flags, headers=headers)


@pytest.fixture
def careless(tmp_path):
    """Headers with a reader that accepts bytes after the last tensor, and tensors that end beyond the file."""
    return changed_headers(tmp_path, {"safetensors": (CHECK, "if (false)")})


@pytest.mark.torture
@pytest.mark.parametrize("reader", fuzzing.CASES)
def test_every_named_case_is_read_without_a_fault(tmp_path, reader):
    program = corpus_reader(reader, *SANITIZERS)
    assert read_all(reader, program, tmp_path / "corpus") == (0, True, "")


@pytest.mark.compiler
def test_the_named_cases_detect_a_reader_that_lets_a_tensor_end_beyond_the_file(tmp_path, careless):
    program = corpus_reader("safetensors", headers=careless)  # detects it before it reads any data
    code, whole, said = read_all("safetensors", program, tmp_path / "corpus")
    assert code != 0
    assert not whole
    assert "does not hold: a tensor has the bytes of its shape" in said


def random_calls(target, prefix=None):
    """What a target prints under the sanitizers, over the installed runtime or the one of another prefix."""
    settings = {"CMAKE_BUILD_TYPE": "None", "CMAKE_CXX_FLAGS": " ".join(["-O0", *SANITIZERS])}
    program = built_with(settings, "fuzz_shim fuzz_call", CONSUMER / "runtime", prefix) / f"fuzz_{target}"
    environment = {**os.environ, **fuzzing.ENVIRONMENT, **fuzzing.LITTLE_MEMORY, **fuzzing.BUNDLE}
    done = subprocess.run([program, "0", "20000"], capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.mark.torture
def test_any_arguments_of_the_runtimes_functions_are_refused_or_served():
    code, lines, _ = random_calls("shim")
    assert (code, len(lines)) == (0, 11)


@pytest.mark.torture
def test_any_inputs_of_a_bundle_with_a_mask_are_refused_or_served():
    code, lines, said = random_calls("call")
    assert (code, said) == (0, "")
    assert all(int(count) > 1000 for count in lines[0].split())


CONVOLUTION = ("share/regplug-runtime/convolution.cpp", " || added->sizes[0] != out_channels")
BATCH = ("include/regplug/detail/program_checks.h", " && sizes[0] == first[0]")
NO_MASK = ("include/regplug/aotinductor.h", "if (manifest_.has_mask()) check_mask(input_at(1));")


@pytest.fixture(scope="module")
def careless_runtime(tmp_path_factory):
    """The C++ part of the package without three of its checks."""
    folder = tmp_path_factory.mktemp("careless") / "regplug"
    for name in ("include", "share"):
        shutil.copytree(HEADERS.parent / name, folder / name)
    for name, check in (CONVOLUTION, BATCH, NO_MASK):
        text = (folder / name).read_text()
        assert text.count(check) == 1
        (folder / name).write_text(text.replace(check, ""))
    return f"{folder};{SITE}"


@pytest.mark.torture
def test_random_calls_detect_a_convolution_that_reads_beyond_its_bias(careless_runtime):
    code, _, said = random_calls("shim", careless_runtime)
    assert code != 0
    assert "heap-buffer-overflow" in said


@pytest.mark.torture
def test_random_calls_detect_inputs_that_nobody_checked(careless_runtime):
    code, _, said = random_calls("call", careless_runtime)
    assert code != 0
    assert "does not hold: only inputs that fit are served" in said


def test_the_frozen_manifests_are_seeds(tmp_path):
    frozen = fuzzing.frozen_manifests()
    seeds = {path.read_bytes() for path in fuzzing.seeds("manifest", tmp_path / "corpus").iterdir()}
    assert len(frozen) == 4
    assert seeds.issuperset(frozen)
    assert all(in_python("m", data) == ACCEPTED for data in frozen)
    assert sum(b'"bundle_format":2' in data for data in frozen) == 1


def test_the_faults_in_a_report_are_counted(tmp_path):
    report = tmp_path / "report"
    report.write_text("stat::number_of_executed_units: 12\nstat::new_units_added: 3\n")
    assert fuzzing.read_report(tmp_path) == (12, 3, 0)
    report.write_text("==1== ERROR: libFuzzer: deadly signal\nSUMMARY: libFuzzer: deadly signal\n")
    assert fuzzing.read_report(tmp_path) == (0, 0, 2)
