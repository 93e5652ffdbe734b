"""The frozen bundles of each format can be opened by every later reader, in Python and in C++."""

from pathlib import Path

import pytest
from support.consumer import built, built_without_libtorch, check_golden, run

import regplug
from regplug.bundle.contents import BundleContents
from regplug.bundle.load import module_run
from regplug.format.manifest_rules import parse_manifest
from regplug.format.read_bundle import read_bundle

FROZEN = Path(__file__).resolve().parents[1] / "data"
FORMATS = (1, 2)
DIGESTS = {
    "format-1/conditioner": "cfbf615acb6379bda64535f367b8b5f3b475bc4600c51db50ba77d7725f748ea",
    "format-1/images": "43cd20f2c618e8ffcdfcc86d0b0371b8729c06e36b47bb77cc773c7721b8a282",
    "format-1/readout": "3701fdf9e5a4f039cb2a0c8f308cb9fa46fbd6e23d46704eb140d8acf8dce620",
    "format-2/conditioner": "f6c26603513c90377833f898e9a9d3dc002f4774969309779501c7dba0a7bd23",
}
PROGRAMS = {
    "format-1/conditioner": ["torchscript"],
    "format-1/images": ["torchscript"],
    "format-1/readout": ["torchscript", "aotinductor", "onnx"],
    "format-2/conditioner": ["torchscript", "aotinductor"],
}
EACH_PROGRAM = [(name, backend) for name, backends in PROGRAMS.items() for backend in backends]
WITH_LIBRARY = [name for name, backend in EACH_PROGRAM if backend == "aotinductor"]


def check_cases(name, run_flat):
    results = list(BundleContents(read_bundle(FROZEN / name)).run_cases(run_flat))
    assert {result.case for result in results} >= {"batch_0", "batch_1", "batch_2", "slice"}
    assert all(result.ok for result in results), results


def test_nothing_is_frozen_that_is_not_opened_here():
    folders = [FROZEN / f"format-{number}" for number in FORMATS]
    found = sorted(f"{folder.name}/{path.name}" for folder in folders for path in folder.iterdir())
    assert found == sorted([*DIGESTS, *(f"{folder.name}/README.md" for folder in folders)])
    for name, backends in PROGRAMS.items():
        manifest = read_bundle(FROZEN / name).manifest
        assert f"format-{manifest.bundle_format}" == name.partition("/")[0]
        assert [program.backend for program in manifest.programs] == backends


def test_the_frozen_bundle_of_format_2_has_what_format_1_has_not():
    manifest = read_bundle(FROZEN / "format-2" / "conditioner").manifest
    assert manifest.input_names == ("tokens", "mask", "state", "time")
    assert manifest.input.shape == ("B", "T", 6)
    assert [part.name for part in manifest.parts] == ["cls", "registers", "patches", "state", "time"]


@pytest.mark.parametrize("name", DIGESTS)
def test_a_frozen_bundle_is_opened_as_data_and_holds_every_golden_case(name):
    names = read_bundle(FROZEN / name).manifest.input_names
    check_cases(name, module_run(name, regplug.load(FROZEN / name, digest=DIGESTS[name]), names))


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
@pytest.mark.parametrize("name", WITH_LIBRARY)
def test_a_frozen_model_library_holds_every_golden_case_in_cpp(name):
    pinned = ["--pin", DIGESTS[name]]
    assert run(built() / "regplug_open", FROZEN / name, "--aotinductor", *pinned) == (0, "ok\n")
    for programs in (built(), built_without_libtorch()):
        check_golden(programs / "regplug_aoti_golden", FROZEN / name)


@pytest.mark.parametrize("name", DIGESTS)
def test_another_digest_than_the_frozen_one_is_refused(name):
    other = DIGESTS[name].translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    with pytest.raises(regplug.BundleError, match=f"sha256 is {DIGESTS[name]}, pinned is {other}"):
        regplug.load(FROZEN / name, digest=other)


def test_the_golden_check_sees_another_output():
    name = "format-1/readout"
    right = module_run(name, regplug.load(FROZEN / name))
    with pytest.raises(AssertionError):
        check_cases(name, lambda given: [out + 1e-3 for out in right(given)])
