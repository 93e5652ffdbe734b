"""A share of the manifests with hostile options; and the judge detects what a load must not do."""

import pytest

from torture.options import Loader, Outcome, judge, run


@pytest.mark.torture
def test_hostile_options_crash_no_process_and_take_no_memory(tmp_path):
    found = run(tmp_path, 0.06, 1, lambda word: None)
    assert {one.what.rpartition(": ")[2] for one in found} == {"core", "plugins", "FiLM", "timm", "transformers"}
    # not their seconds, because the machine may be busy
    bad = {one.what: {word: count for word, count in one.bad.items() if count and word != "over 1 s"} for one in found}
    assert {what: counts for what, counts in bad.items() if counts} == {}


@pytest.mark.parametrize(
    ("outcome", "seen"),
    [
        ("died", "process deaths"),
        ("hung", "hangs"),
        (Outcome("ValueError: no", 0, 0.1), "untidy refusals"),
        (Outcome("bundle {}: {}" + "x" * 400, 0, 0.1), "untidy refusals"),
        (Outcome("bundle {}: \x1b[2J", 0, 0.1), "untidy refusals"),
        (Outcome("loaded", 0, 1.1), "over 1 s"),
        (Outcome("loaded", (16 << 20) + 111, 0.1), "over 1.1 times the files and 16 MiB"),
    ],
)
def test_the_judge_detects_each_thing_that_must_not_happen(tmp_path, outcome, seen):
    (tmp_path / "weights.safetensors").write_bytes(b"x" * 100)
    if isinstance(outcome, Outcome):
        outcome = Outcome(outcome.said.replace("{}", str(tmp_path)), outcome.taken, outcome.seconds)
    assert [word for word, is_so in judge(tmp_path, outcome).items() if is_so] == [seen]
    assert not any(judge(tmp_path, Outcome("loaded", (16 << 20) + 110, 0.9)).values())


def test_a_process_that_dies_is_detected_and_started_again(tmp_path):
    loader = Loader([])
    try:
        assert loader.load(tmp_path / "nothing").said.endswith("no such folder.")
        loader._process.kill()
        loader._process.wait()
        assert loader.load(tmp_path) == "died"
        assert loader.load(tmp_path / "nothing").said.endswith("no such folder.")
    finally:
        loader.close()
