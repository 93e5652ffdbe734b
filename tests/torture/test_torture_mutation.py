"""A few mutants of the Python reader; and the oracle detects a wrong reader."""

import shlex
import subprocess
from pathlib import Path

import pytest
from support.consumer import built

from torture import mutation
from torture.oracle import expect


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    return expect(built() / "regplug_verdict", "s", folder / "expected")


def judged(copy, expected):
    """The oracle's exit status for the copy."""
    command = shlex.split(mutation.command_of(copy, expected))
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


@pytest.mark.compiler
def test_the_oracle_accepts_the_unchanged_package(tmp_path, expected):
    assert judged(mutation.copy_of(tmp_path), expected) == 0


WRONG = {
    "a check left out": ("safetensors_header", "if begin % item:", "if False:"),
    "another limit": ("limits", "MAX_RANK = 8", "MAX_RANK = 9"),
    "another message": ("safetensors_header", "expected at least 8 bytes", "expected 8 bytes"),
    "a right verdict with wrong tensors": (
        "safetensors_header",
        '"F16": 2, "BF16": 2',
        '"BF16": 2, "F16": 2',
    ),
}


@pytest.mark.compiler
@pytest.mark.parametrize("case", WRONG)
def test_the_oracle_refuses_a_reader_with(tmp_path, expected, case):
    copy = mutation.copy_of(tmp_path)
    module, right, wrong = WRONG[case]
    source = copy / "regplug" / "format" / f"{module}.py"
    assert source.read_text().count(right) == 1
    source.write_text(source.read_text().replace(right, wrong))
    assert judged(copy, expected) == 1


@pytest.mark.torture
def test_a_few_mutants_are_killed_and_the_sources_stay_unchanged(tmp_path):
    sources = {path: path.read_bytes() for path in mutation.PACKAGE.rglob("*.py")}
    figures = mutation.run(tmp_path, 0.005, 0, lambda word: None)
    assert all(figure.ok for figure in figures), [figure.note for figure in figures]
    assert len(figures) == len(mutation.MODULES)
    assert all(figure.tried >= 1 and "not made" not in figure.bad for figure in figures)
    assert {path: path.read_bytes() for path in sources} == sources


def test_every_module_has_mutants_and_every_excluded_function_exists(tmp_path):
    for module, (_, left_out) in mutation.MODULES.items():
        source = mutation.PACKAGE / f"{module}.py"
        assert len(mutation.mutations(source, tmp_path / Path(module).name, left_out)) > 5
        assert all(f"def {name}(" in source.read_text() for name in left_out)
