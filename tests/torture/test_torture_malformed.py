"""The named malformed files and manifests in both languages; and a reader that is too loose is detected."""

from pathlib import Path

import pytest
from support import malformed_files, malformed_manifests
from support.consumer import built
from support.cpp_build import LOOSE, changed_headers, compiled

from torture import malformed
from torture.verdicts import FILE, MANIFEST

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def verdict():
    return built() / "regplug_verdict"


@pytest.fixture(scope="module")
def loose(tmp_path_factory):
    """The same program with a C++ reader that checks no alignment and accepts any key of a manifest."""
    return compiled("verdict.cpp", "-O1", headers=changed_headers(tmp_path_factory.mktemp("loose"), LOOSE))


def test_there_are_enough_cases_and_each_rule_has_accepted_and_refused_ones():
    files, manifests = malformed_files.cases(), malformed_manifests.cases()
    assert sum(said is not None for _, said in files.values()) >= 250
    assert sum(said is not None for _, said in manifests.values()) >= 100
    for group in malformed_files.GROUPS:
        sides = {said is None for name, (_, said) in files.items() if name.startswith(f"{group.__name__}: ")}
        assert sides == ({True, False} if group is not malformed_files.several_faults else {False})


def test_every_rule_of_the_specification_is_broken_by_a_case():
    page = (ROOT / "docs" / "bundle.md").read_text().partition("## weights.safetensors, golden.safetensors")[2]
    rules = {line.split("`")[1] for line in page.partition("\n## ")[0].splitlines() if line.startswith("| `")}
    assert rules == {said.partition(":")[0] for _, said in malformed_files.cases().values() if said is not None}


@pytest.mark.compiler
def test_both_languages_give_each_case_the_verdict_of_its_rule(verdict):
    figures = malformed.figures(verdict)
    assert [figure.ok for figure in figures] == [True, True], [figure.note for figure in figures]
    assert [figure.tried for figure in figures] == [len(malformed_files.cases()), len(malformed_manifests.cases())]


@pytest.mark.compiler
def test_a_cpp_reader_without_a_check_is_detected(loose):
    found = malformed.faults(FILE, malformed.files(), loose)
    assert found["different messages"]
    assert all("alignment" in name for name in found["different messages"])
    cases = malformed_manifests.cases()
    unknown = {name: case for name, case in malformed.manifests().items() if "no such key" in (cases[name][1] or "")}
    found = malformed.faults(MANIFEST, unknown, loose)
    assert any("no such key" in said for said in found["different messages"])


@pytest.mark.compiler
def test_a_wrong_verdict_is_detected(verdict):
    name = "offsets: 2 bytes of data"
    data = malformed.files()[name][0]
    found = malformed.faults(FILE, {name: (data, "file: size: another.".__eq__)}, verdict)
    assert found == {
        "another verdict": [f"{name}: accepted"],
        "different messages": [],
        "looser than the reference": [],
    }


@pytest.mark.compiler
def test_a_reader_that_accepts_what_the_reference_refuses_is_detected(verdict, monkeypatch):
    data = malformed_files.one(malformed_files.entry("F16", "[2]", "[0,2]"))
    monkeypatch.setattr(malformed, "in_python", lambda kind, data: "accepted")
    found = malformed.faults(FILE, {"x": (data, "accepted".__eq__)}, verdict)
    assert found["looser than the reference"] == ["x"]
