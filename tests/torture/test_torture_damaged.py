"""A share of the damaged bundles in every loader; and the judge detects each thing that must not happen."""

import sys

import pytest
from support.consumer import built, readout

import regplug
from torture import damaged
from torture.damaged import APART, DEATH, HANG, UNTIDY, WRONG, Loader, damage, figures, loaders, try_all

# opens as the Python loader does, but checks no digest and runs no golden case
CARELESS = """
import sys
from regplug.format.folder import Folder
from regplug.bundle.program import LoadedProgram
from torture import damaged
Folder.read_checked = lambda self, name, size, sha256: self.read(name, 1 << 30)
LoadedProgram.check = lambda *_: None
damaged.main("torchscript", sys.argv[1])
"""
ANSWERS = "import sys\nfor line in sys.stdin: print({answer!r}, flush=True)"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    return damaged.originals(tmp_path_factory.mktemp("bundles"), ["torchscript"])


def verdicts(bundles, folder, count, make):
    counts, described = try_all(damage(folder, bundles, count, seed=3), make, lambda word: None)
    return {figure.what.partition(", ")[2]: figure for figure in figures(counts, described, seed=3)}


@pytest.mark.torture
def test_no_loader_crashes_hangs_or_accepts_a_wrong_number(tmp_path):
    bundles = damaged.originals(tmp_path, ["torchscript", "aotinductor"])
    found = verdicts(bundles, tmp_path, 36, lambda original: loaders(built(), original, tmp_path))
    assert {
        "Python data",
        "Python verify",
        "C++ bundle",
        "C++ aotinductor",
        "regplug_runtime",
        "regplug-run",
    } <= found.keys()
    assert {name: figure for name, figure in found.items() if not figure.ok} == {}
    assert {figure.tried for figure in found.values()} == {36}


def test_a_loader_that_checks_no_digest_and_no_golden_case_is_detected(bundles, tmp_path):
    found = verdicts(
        bundles, tmp_path, 90, lambda original: {"careless": Loader([sys.executable, "-c", CARELESS, original])}
    )
    assert found["careless"].bad[WRONG] > 0
    assert found["careless"].bad[DEATH] == 0
    assert not found["careless"].ok


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import os; input(); os.abort()", DEATH),
        ("import time; time.sleep(600)", HANG),
        (ANSWERS.format(answer='{"refused": "two\\nlines"}'), UNTIDY),
        (ANSWERS.format(answer='{"errors": {"batch_1": "nan"}}'), WRONG),
        (ANSWERS.format(answer='{"weights": "of others"}'), WRONG),
    ],
)
def test_each_thing_that_must_not_happen_is_counted(bundles, tmp_path, monkeypatch, code, what):
    monkeypatch.setattr(damaged, "ANSWER_LIMIT_S", 0.3)
    monkeypatch.setattr(damaged, "WAYS", damaged.WAYS[:1])  # without new digests
    found = verdicts(bundles, tmp_path, 2, lambda original: {"bad": Loader([sys.executable, "-c", code])})
    assert found["bad"].bad[what] == 2


def test_two_loaders_with_different_messages_are_detected(bundles, tmp_path):
    def make(original):
        return {
            name: Loader([sys.executable, "-c", ANSWERS.format(answer=f'{{"refused": "{word}"}}')])
            for name, word in (("Python data", "a"), ("C++ bundle", "b"))
        }

    found = verdicts(bundles, tmp_path, 2, make)
    assert found["C++ bundle"].bad[APART] == 2
    assert found["Python data"].ok


def test_the_same_seed_draws_the_same_damage(bundles, tmp_path):
    (tmp_path / "again").mkdir()
    first = damage(tmp_path, bundles, 45, seed=1)
    assert [one.how for one in first] == [one.how for one in damage(tmp_path / "again", bundles, 45, seed=1)]
    assert {one.repinned for one in first} == {True, False}
    regplug.export(*readout("compress-concat"), tmp_path / "whole")
    assert regplug.verify(tmp_path / "whole").ok
