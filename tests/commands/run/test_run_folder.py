"""What an output folder may have when a run begins, and what becomes of it.

| what is there | what is checked |
|---|---|
| files and no journal | refused; nothing is touched |
| files that the journal does not name | kept by reruns and --force; refused where a result would replace one |
| another run at work | refused |
| results of another bundle or other options | refused, by what differs; --force deletes those in the journal |
| a journal whose last line is cut | that line's file is made again |
| a damaged line, or one that names a file elsewhere | refused, by the line's number; nothing is touched |
| a result that is missing, shorter, or edited | --status names it; it is made again, with the same bytes |
| an input that was edited, has more parts, fewer, or cannot be opened now | its old results are deleted; no row twice |
| a result that was finished in the moment of a kill | it is deleted or made again, also if its input has changed |
| it cannot be made, or written to; it is inside an input folder | an error that names it; results are no inputs |
"""

import json
import os

import numpy as np
import pytest
from support.commands import run_command
from support.real_runs import JOURNAL, done_in, ids_of, journal_of, results_of, started, wait_for, write_rows
from support.token_files import registers, write_parquet

from regplug.commands.run import units


@pytest.fixture
def inputs(tmp_path):
    """Three files of 10 rows."""
    (tmp_path / "in").mkdir()
    for number, name in enumerate("abc"):
        write_rows(tmp_path / "in" / f"{name}.parquet", 10 * number, registers(10, number))
    return tmp_path / "in"


@pytest.fixture
def run(pool, inputs, tmp_path):
    """A function that runs ``pool`` over these inputs, or others."""

    def begin(*options, bundle=pool[0], inputs=inputs):
        return run_command("run", bundle, inputs, "-o", tmp_path / "out", "--carry", "id", "--workers", 1, *options)

    return begin


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def status(out):
    code, said, _ = run_command("run", "--status", out, "--json")
    found = json.loads(said)
    assert (code == 0) == found["complete"]
    return found


def change_journal(out, change):
    lines = (out / JOURNAL).read_bytes().splitlines(keepends=True)
    (out / JOURNAL).write_bytes(b"".join(change(lines)))


def test_a_folder_with_files_and_no_journal_is_refused(run, out):
    out.mkdir()
    (out / "mine.parquet").write_bytes(b"mine")
    code, _, err = run()
    assert code == 2
    assert err == f"error: output {out}: expected an empty folder or one of an earlier run, got a folder with files.\n"
    assert [path.name for path in out.iterdir()] == ["mine.parquet"]


def test_files_that_the_journal_does_not_name_are_kept_and_never_replaced(run, out, inputs, concat):
    assert run()[0] == 0
    (out / "mine.parquet").write_bytes(b"mine")
    (out / "d.parquet").write_bytes(b"mine, too")
    assert run()[0] == 0
    assert run("--force", bundle=concat[0])[0] == 0
    write_rows(inputs / "d.parquet", 30, registers(10))
    code, _, err = run(bundle=concat[0])
    assert code == 2
    assert "got d.parquet, which the journal does not name; move it away." in err
    assert (out / "mine.parquet").read_bytes() == b"mine"
    assert (out / "d.parquet").read_bytes() == b"mine, too"
    (out / "d.parquet").unlink()
    assert run(bundle=concat[0])[0] == 0


def test_two_runs_in_one_folder_at_once_are_refused(meddling_bundle, inputs, out, tmp_path):
    go_on = tmp_path / "go-on"
    env = {
        "MEDDLE": f"import time\nwhile not os.path.exists({str(go_on)!r}): time.sleep(0.01)",
        "PYTHONPATH": str(meddling_bundle.site),
    }
    arguments = (meddling_bundle.bundle, inputs, "-o", out)
    with started(*arguments, env=env) as first:
        assert wait_for(lambda: bool(journal_of(out)))
        code, _, err = run_command("run", *arguments)
        assert code == 2
        assert err == f"error: output {out}: expected no other run in this folder, got one that works now.\n"
        go_on.touch()
        assert first.end() == 0
    assert done_in(out) == 3


OTHERS = {
    "bundle": ("bundle", ()),
    "--batch": ("batch 1024 there and 5 now", ("--batch", 5)),
    "--format": ("format 'parquet' there and 'arrow' now", ("--format", "arrow")),
    "--cast": ("cast False there and True now", ("--cast",)),
    "--carry": ("carry ['id'] there and ['all'] now", ("--carry", "all")),
}


def test_a_folder_without_results_as_after_a_wrong_option_takes_other_options(run, out):
    assert run("--carry", "nothing")[0] == 1
    assert done_in(out) == 0
    assert run()[0] == 0
    assert status(out)["complete"]


@pytest.mark.parametrize("other", OTHERS)
def test_results_of_another_bundle_or_other_options_are_refused_and_force_deletes_them(run, out, concat, pool, other):
    said, options = OTHERS[other]
    bundle = concat[0] if other == "bundle" else pool[0]
    assert run()[0] == 0
    before = results_of(out)
    code, _, err = run(*options, bundle=bundle)
    assert code == 2
    assert f"expected results of the same run, got {said}" in err
    assert len(err) <= 410
    assert results_of(out) == before
    (out / "mine").write_bytes(b"mine")
    assert run(*options, "--force", bundle=bundle)[0] == 0
    after = results_of(out)
    assert after.pop("mine") == b"mine"
    assert len(after) == 3
    assert all(after[name] != data for name, data in before.items() if name in after) or other in (
        "--cast",
        "--carry",
        "--batch",
    )
    assert status(out)["done"] == 3


def test_a_journal_whose_last_line_is_cut_gives_the_same_results(run, out):
    assert run()[0] == 0
    before = results_of(out)
    size = (out / JOURNAL).stat().st_size
    os.truncate(out / JOURNAL, size - 9)
    assert not status(out)["complete"]
    code, said, _ = run()
    assert code == 0
    assert "2 done before" in said
    assert results_of(out) == before
    assert status(out)["complete"]
    (out / JOURNAL).write_bytes((out / JOURNAL).read_bytes() + bytes(300))  # as after a power failure
    assert run()[0] == 0
    assert status(out)["complete"]


@pytest.mark.parametrize("length", [0, 1, 40])
def test_a_journal_that_was_cut_in_its_first_line_is_begun_again(run, out, length):
    assert run()[0] == 0
    for path in out.glob("*.parquet"):
        path.unlink()
    os.truncate(out / JOURNAL, length)
    code, _, err = run_command("run", "--status", out)
    assert code == 2
    assert "got one that ended before it began; run it again" in err
    assert run()[0] == 0
    assert status(out)["complete"]


DAMAGES = {
    "a changed byte": lambda line: line.replace(b'"', b"\0", 1),
    "a carriage return": lambda line: line.replace(b'"file": "', b'"file": "\r'),
    "another field": lambda line: line.replace(b'"sha256"', b'"sha255"'),
    "a number": lambda line: b"3\n",
    "no field": lambda line: b"{}\n",
    "a deep value": lambda line: b"[" * 100_000 + b"\n",
    "a file elsewhere": lambda line: line.replace(b'"file": "', b'"file": "../in/'),
    "an absolute path": lambda line: line.replace(b'"file": "', b'"file": "/'),
}


def test_a_damaged_line_is_refused_by_its_number_and_its_file_is_made_again_without_it(run, out, inputs):
    assert run()[0] == 0
    before, journal = results_of(out), (out / JOURNAL).read_bytes()
    for damage in DAMAGES.values():
        (out / JOURNAL).write_bytes(journal)
        change_journal(out, lambda lines, damage=damage: [*lines[:3], damage(lines[3]), *lines[4:]])
        for code, _, err in (run(), run("--force"), run_command("run", "--status", out)):
            assert code == 2
            assert err.startswith(f"error: journal {out / JOURNAL}: line 4: expected JSON of regplug.run/1, got ")
            assert err.count("\n") == 1
        assert results_of(out) == before
        assert len(list(inputs.iterdir())) == 3
    change_journal(out, lambda lines: [*lines[:3], *lines[4:]])
    code, said, _ = run()
    assert code == 0
    assert "2 done before" in said
    assert results_of(out) == before


RESULTS = {
    "missing": lambda path: path.unlink(),
    "shorter": lambda path: os.truncate(path, 100),
    "another sha256": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"),
}


def test_results_that_are_missing_or_edited_are_named_and_made_again(run, out):
    assert run()[0] == 0
    before = results_of(out)
    for name, change in zip("abc", RESULTS.values(), strict=True):
        change(out / f"{name}.parquet")
    found = status(out)
    assert found["damaged"].keys() == {"a", "b", "c"}
    assert found["damaged"]["a"] == "missing"
    code, said, _ = run()
    assert code == 0
    assert "wrote 30 rows" in said
    assert results_of(out) == before
    assert status(out)["complete"]


def test_a_result_whose_time_alone_has_changed_is_not_made_again(run, out):
    assert run()[0] == 0
    os.utime(out / "a.parquet", ns=(0, 0))
    assert "3 done before" in run()[1]


def test_an_input_that_was_edited_is_run_again(run, out, inputs):
    assert run()[0] == 0
    before = results_of(out)
    write_rows(inputs / "b.parquet", 70, registers(20, 7))
    code, said, _ = run()
    assert code == 0
    assert "wrote 20 rows to" in said
    assert "2 done before" in said
    after = results_of(out)
    assert {name for name in before if before[name] != after[name]} == {"b.parquet"}
    assert sorted(ids_of(out)) == [*range(10), *range(20, 30), *range(70, 90)]


def test_results_of_an_input_that_cannot_be_opened_any_more_are_deleted(run, out, inputs):
    assert run()[0] == 0
    (inputs / "b.parquet").write_bytes(b"")
    code, _, err = run("--on-error", "skip")
    assert code == 1
    assert "failed b: input" in err
    assert sorted(ids_of(out)) == [*range(10), *range(20, 30)]


def test_a_file_that_grew_has_no_row_twice(run, out, inputs, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 20_000)
    for count in (100, 1000, 1500, 400, 90):
        write_rows(inputs / "b.parquet", 1000, registers(count))
        assert run()[0] == 0
        assert sorted(ids_of(out)) == [*range(10), *range(20, 30), *range(1000, 1000 + count)]
        assert status(out)["complete"]
    (inputs / "b.parquet").write_bytes(b"")
    assert run("--on-error", "skip")[0] == 1
    assert sorted(ids_of(out)) == [*range(10), *range(20, 30)]


def killed_before_the_line_of(out, name):
    """The folder as a kill leaves it after the result is there, and before its line."""
    change_journal(out, lambda lines: [line for line in lines if json.loads(line).get("done") != name])


def test_a_result_that_was_finished_in_the_moment_of_a_kill_is_no_row_twice(run, out, inputs, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 20_000)
    write_rows(inputs / "b.parquet", 1000, registers(500))
    assert run()[0] == 0
    [*_, last] = sorted(path.stem for path in out.glob("b-*"))
    killed_before_the_line_of(out, last)
    write_rows(inputs / "b.parquet", 1000, registers(1000))  # so its parts have other names
    assert run()[0] == 0
    assert sorted(ids_of(out)) == [*range(10), *range(20, 30), *range(1000, 2000)]


def test_a_result_of_that_moment_does_not_outlive_its_input_or_another_recipe(run, out, inputs, concat):
    assert run()[0] == 0
    killed_before_the_line_of(out, "b")
    assert run("--force", "--format", "arrow", bundle=concat[0])[0] == 0
    assert sorted(path.name for path in out.glob("*.*") if path.name != JOURNAL) == ["a.arrow", "b.arrow", "c.arrow"]
    killed_before_the_line_of(out, "b")
    (inputs / "b.parquet").unlink()
    assert run("--format", "arrow", bundle=concat[0])[0] == 0
    assert sorted(path.name for path in out.glob("*.arrow")) == ["a.arrow", "c.arrow"]


def test_the_status_is_about_the_last_run(run, out, inputs):
    (inputs / "b.parquet").write_bytes(b"")
    assert run("--on-error", "skip")[0] == 1
    assert status(out)["failed"].keys() == {"b"}
    (inputs / "b.parquet").unlink()
    assert run()[0] == 0
    found = status(out)
    assert (found["failed"], found["units"], found["done"], found["rows"]) == ({}, 2, 2, 20)
    write_rows(inputs.parent / "d.parquet", 90, registers(5))
    assert run(inputs=inputs.parent / "d.parquet")[0] == 0
    found = status(out)
    assert (found["units"], found["done"], found["rows"]) == (1, 1, 5)
    assert sorted(ids_of(out)) == [*range(10), *range(20, 30), *range(90, 95)]


def test_a_run_that_did_nothing_new_adds_nothing_to_the_journal(run, out):
    assert run()[0] == 0
    before = (out / JOURNAL).read_bytes()
    assert run()[0] == 0
    assert (out / JOURNAL).read_bytes() == before


def test_results_inside_an_input_folder_are_no_inputs(pool, inputs):
    for _ in range(2):
        code, out, err = run_command("run", pool[0], inputs, "-o", inputs / "out", "--workers", 1)
        assert code == 0, err
    assert "3 done before" in out
    code, _, err = run_command("run", pool[0], inputs / "out", "-o", inputs / "out")
    assert (code, err) == (2, f"error: inputs: expected files outside the output {inputs / 'out'}, got only results.\n")


def test_an_output_that_is_a_file_or_below_one_is_an_error_that_names_it(run, out, tmp_path):
    out.write_bytes(b"mine")
    code, _, err = run()
    assert code == 2
    assert str(out) in err
    assert err.count("\n") == 1
    assert out.read_bytes() == b"mine"


def test_an_output_that_cannot_be_written_and_an_input_that_cannot_be_read_are_named(run, out, inputs):
    out.mkdir(0o500)
    if os.access(out, os.W_OK):
        pytest.skip("this user may write and read everything")
    code, _, err = run()
    assert code == 1
    assert str(out) in err
    out.chmod(0o700)
    (inputs / "b.parquet").chmod(0)
    code, _, err = run("--on-error", "skip")
    assert code == 1
    assert "failed b: input" in err
    assert "Permission denied" in err
    (inputs / "sub").mkdir(0)
    code, _, err = run()
    assert code == 2
    assert str(inputs / "sub") in err
    (inputs / "sub").chmod(0o700)


def test_inputs_whose_results_would_have_one_name_are_refused(pool, inputs, tmp_path, monkeypatch):
    bundle, out = pool[0], tmp_path / "out"
    (tmp_path / "a.parquet").write_bytes((inputs / "a.parquet").read_bytes())
    code, _, err = run_command("run", bundle, inputs, tmp_path / "a.parquet", "-o", out)
    assert code == 2
    assert "whose results would have one name; rename one, or name the folder above them" in err
    monkeypatch.setattr(units, "UNIT_BYTES", 20_000)
    write_rows(inputs / "d.parquet", 0, np.concatenate([registers(500)]))
    write_parquet(inputs / "d-00001-of-00003.parquet", registers(5))
    code, _, err = run_command("run", bundle, inputs, "-o", out)
    assert code == 2
    assert "both with results d-00001-of-00003; rename one" in err
    assert results_of(out) == {}
