"""A share of the random mutants; and two readers that differ are detected."""

import random

import pytest
from support import malformed_files
from support.cpp_build import LOOSE, changed_headers, compiled

from torture import mutants
from torture.verdicts import FILE, compare


@pytest.mark.torture
def test_both_languages_give_the_mutants_one_verdict(tmp_path):
    figures = mutants.run(tmp_path, 0.01, 0, lambda word: None)
    assert [figure.ok for figure in figures] == [True, True], [figure.note for figure in figures]
    assert [figure.tried for figure in figures] == [1000, 300]
    assert not any(figure.note.startswith("0 accepted") for figure in figures)


def test_the_same_seed_makes_the_same_mutants():
    good = [data for data, said in malformed_files.cases().values() if said is None and len(data) < 1000]
    first, again = ([mutants.mutant_of_file(good, random.Random(seed)) for seed in range(200)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 150


@pytest.fixture
def loose(tmp_path):
    """A C++ reader that checks no alignment."""
    return compiled("verdict.cpp", "-O1", headers=changed_headers(tmp_path, LOOSE))


@pytest.mark.compiler
def test_two_readers_that_differ_are_detected(loose):
    """The mutants are few, so they are made from cases that only the missing check refuses."""
    near = [data for data, said in malformed_files.cases().values() if said is not None and "alignment" in said]
    draw = random.Random(0)
    counted, shown = compare(loose, [(FILE, mutants.mutant_of_file(near, draw)) for _ in range(500)])
    assert counted["disagreements"] > 0
    assert counted["different messages"] >= counted["disagreements"]
    assert counted["looser than the reference"] == 0
    assert "alignment" in shown[0] or "accepted" in shown[0]
