"""The frozen bundles of format 1 can be opened by every later reader, in Python and in C++."""

from pathlib import Path

import pytest
from support.consumer import built, check_golden, run

import regplug
from regplug.bundle.contents import BundleContents
from regplug.bundle.load import module_run
from regplug.format.manifest_rules import parse_manifest
from regplug.format.read_bundle import read_bundle

FROZEN = Path(__file__).resolve().parents[1] / "data" / "format-1"
DIGESTS = {
    "conditioner": "cfbf615acb6379bda64535f367b8b5f3b475bc4600c51db50ba77d7725f748ea",
    "images": "43cd20f2c618e8ffcdfcc86d0b0371b8729c06e36b47bb77cc773c7721b8a282",
    "readout": "3701fdf9e5a4f039cb2a0c8f308cb9fa46fbd6e23d46704eb140d8acf8dce620",
}
PROGRAMS = {
    "conditioner": ["torchscript"],
    "images": ["torchscript"],
    "readout": ["torchscript", "aotinductor", "onnx"],
}
EACH_PROGRAM = [(name, backend) for name, backends in PROGRAMS.items() for backend in backends]


def check_cases(name, run_flat):
    results = list(BundleContents(read_bundle(FROZEN / name)).run_cases(run_flat))
    assert {result.case for result in results} >= {"batch_0", "batch_1", "batch_2", "slice"}
    assert all(result.ok for result in results), results


def test_nothing_is_frozen_that_is_not_opened_here():
    assert sorted(path.name for path in FROZEN.iterdir()) == ["README.md", *DIGESTS]
    for name, backends in PROGRAMS.items():
        manifest = read_bundle(FROZEN / name).manifest
        assert [program.backend for program in manifest.programs] == backends


@pytest.mark.parametrize("name", DIGESTS)
def test_a_frozen_bundle_is_opened_as_data_and_holds_every_golden_case(name):
    check_cases(name, module_run(name, regplug.load(FROZEN / name, digest=DIGESTS[name])))


@pytest.mark.parametrize(("name", "backend"), EACH_PROGRAM)
def test_each_program_of_a_frozen_bundle_holds_every_golden_case(name, backend):
    check_cases(name, regplug.load(FROZEN / name, program=backend, digest=DIGESTS[name]).run_flat)


@pytest.mark.parametrize("name", DIGESTS)
def test_a_frozen_manifest_is_written_again_as_it_is(name):
    data = (FROZEN / name / "manifest.json").read_bytes()
    assert parse_manifest("DIR", data).to_bytes() == data


@pytest.mark.compiler
@pytest.mark.parametrize("name", DIGESTS)
def test_a_frozen_bundle_is_opened_in_cpp_and_holds_every_golden_case(name):
    pinned = ["--pin", DIGESTS[name]]
    assert run(built() / "regplug_open", FROZEN / name, *pinned) == (0, "ok\n")
    assert run(built() / "regplug_open", FROZEN / name, "--torchscript", *pinned) == (0, "ok\n")
    check_golden(built() / "regplug_golden", FROZEN / name)


@pytest.mark.compiler
def test_the_frozen_model_library_holds_every_golden_case_in_cpp():
    pinned = ["--pin", DIGESTS["readout"]]
    assert run(built() / "regplug_open", FROZEN / "readout", "--aotinductor", *pinned) == (0, "ok\n")
    check_golden(built() / "regplug_aoti_golden", FROZEN / "readout")


@pytest.mark.parametrize("name", DIGESTS)
def test_another_digest_than_the_frozen_one_is_refused(name):
    other = DIGESTS[name].translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    with pytest.raises(regplug.BundleError, match=f"sha256 is {DIGESTS[name]}, pinned is {other}"):
        regplug.load(FROZEN / name, digest=other)


def test_the_golden_check_sees_another_output():
    loaded = regplug.load(FROZEN / "readout")
    with pytest.raises(AssertionError):
        check_cases("readout", lambda given: [out + 1e-3 for out in module_run("readout", loaded)(given)])
