"""The C++ readers on every named case under ASan and UBSan; and the fuzzed program detects a wrong reader."""

import os
import subprocess

import pytest
from support.cpp_build import HEADERS, changed_headers, compiled

from torture import fuzzing

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


def test_the_faults_in_a_report_are_counted(tmp_path):
    report = tmp_path / "report"
    report.write_text("stat::number_of_executed_units: 12\nstat::new_units_added: 3\n")
    assert fuzzing.read_report(tmp_path) == (12, 3, 0)
    report.write_text("==1== ERROR: libFuzzer: deadly signal\nSUMMARY: libFuzzer: deadly signal\n")
    assert fuzzing.read_report(tmp_path) == (0, 0, 2)
