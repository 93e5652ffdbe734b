"""Files that cannot be read or have other rows than the bundle takes: each fails alone, by name and with the reason.

| what is wrong | what is checked |
|---|---|
| a file cut in half, random bytes, an empty file, of every kind; a link that leads nowhere | its name and a reason |
| wrong R, wrong D, float64 without --cast, a missing column | expected and got sizes, dtypes, names |
| NaN, infinity, null, lists of different lengths | the row in the file, also in the second part of a large one |
| changed, cut or deleted while it is read | fails; nothing of it is kept |
| a readout that raises | the readout's error |
| one of these, with --on-error stop | the others are not begun, and stay undone or done as they were |
"""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import run_command
from support.real_runs import journal_of, results_of
from support.token_files import D, R, lists, plain_lists, registers, write_arrow, write_parquet, write_safetensors

from regplug.commands.run import units

WRITERS = {"parquet": write_parquet, "arrow": write_arrow, "safetensors": write_safetensors}
SPOILS = {
    "cut": lambda data: data[: len(data) // 2],
    "random": lambda data: np.random.default_rng(0).bytes(len(data)),
    "empty": lambda data: b"",
}


def write_column(path, column, name="registers"):
    pq.write_table(pa.table({"id": pa.array(range(len(column))), name: column}), path, row_group_size=100)


def with_value(value):
    rows = registers(250)
    rows[217, 1, 3] = value
    return lists(rows)


def with_rows(change):
    values = registers(250).tolist()
    change(values)
    return pa.array(values, pa.list_(pa.list_(pa.float32())))


def set_row(row):
    return lambda values: values.__setitem__(217, row)


COLUMNS = {
    "wrong-r": (lists(registers(250)[:, :2]), f"expected [n, {R}, {D}], got [n, {2 * D}]"),
    "wrong-d": (plain_lists(registers(250)[:, :, :7]), f"expected [n, {R}, {D}], got [n, {R}, 7]"),
    "float64": (lists(registers(250).astype("float64")), "expected float32, got float64; allow rounding, with --cast"),
    "nan": (with_value(np.nan), "column 'registers': row 217: expected finite numbers, got nan"),
    "infinity": (with_value(-np.inf), "row 217: expected finite numbers, got -inf"),
    "null": (with_rows(set_row(None)), "row 217: expected values, got null"),
    "inner-null": (with_rows(set_row([[0.0] * D, None, [0.0] * D])), "row 217: expected values, got null"),
    "null-value": (with_rows(set_row([[0.0] * D] * 2 + [[None] * D])), "row 217: expected values, got null"),
    "ragged": (with_rows(set_row([[0.0] * D] * 2)), f"row 217: expected a list of {R}, as those before, got 2"),
    "inner-ragged": (with_rows(set_row([[0.0] * D] * 2 + [[0.0]])), f"row 217: expected a list of {D}"),
    "text": (pa.array(["a"] * 5), "expected lists of numbers"),
    "tokens-of-nobody": (None, "expected a column 'registers' or 'tokens', got id, register"),
}


def test_each_bad_file_fails_alone_with_its_name_and_reason_and_the_others_are_run(pool, tmp_path):
    bundle, _ = pool
    folder = tmp_path / "in"
    folder.mkdir()
    reasons = {}
    for kind, write in WRITERS.items():
        for spoil, change in SPOILS.items():
            path = folder / f"{spoil}-{kind}.{kind}"
            path.write_bytes(change(write(path, registers(250)).read_bytes()))
            reasons[path.stem] = path.name
    for name, (column, reason) in COLUMNS.items():
        if column is None:
            write_column(folder / f"{name}.parquet", lists(registers(5)), "register")
        else:
            write_column(folder / f"{name}.parquet", column)
        reasons[name] = reason
    for name, target in (("loop", "loop.parquet"), ("nowhere", "no.parquet")):
        (folder / f"{name}.parquet").symlink_to(target)
        reasons[name] = f"{name}.parquet"
    (folder / "endless").symlink_to(folder)
    (folder / "of-parts.parquet").mkdir()
    write_parquet(folder / "of-parts.parquet" / "part-0.parquet", registers(10))
    write_parquet(folder / "good.parquet", registers(250))
    out = tmp_path / "out"
    options = ("--on-error", "skip", "--batch", 100, "--format", "parquet")
    code, said, err = run_command("run", bundle, folder, "-o", out, *options)
    assert code == 1
    assert "wrote 260 rows to" in said
    failed = {
        line.removeprefix("failed ").partition(": ")[0]: line.partition(": ")[2]
        for line in err.splitlines()
        if line.startswith("failed ")
    }
    assert failed.keys() == reasons.keys()
    assert len(err.splitlines()) == len(failed)
    for name, reason in reasons.items():
        assert reason in failed[name], failed[name]
        assert len(failed[name]) <= 400
    assert results_of(out).keys() == {"good.parquet", "of-parts.parquet/part-0.parquet"}
    code, said, _ = run_command("run", "--status", out, "--json")
    status = json.loads(said)["result"] if "result" in json.loads(said) else json.loads(said)
    assert code == 1
    assert status["failed"] == failed
    assert (status["units"], status["done"], status["complete"]) == (len(failed) + 2, 2, False)


@pytest.mark.parametrize(("kind", "count"), [("parquet", 1000), ("arrow", 1000), ("safetensors", 400_000)])
def test_a_bad_value_in_the_last_part_of_a_file_is_named_by_its_row_in_the_file(
    pool, tmp_path, monkeypatch, kind, count
):
    """A safetensors file has parts of at least 32 MiB."""
    bundle, _ = pool
    monkeypatch.setattr(units, "UNIT_BYTES", 40_000)
    rows = registers(count)
    rows[-87, 2, 7] = np.nan
    WRITERS[kind](tmp_path / f"a.{kind}", rows)
    code, _, err = run_command("run", bundle, tmp_path / f"a.{kind}", "-o", tmp_path / "out", "--on-error", "skip")
    assert code == 1
    [line] = err.splitlines()
    name, _, reason = line.removeprefix("failed a-").partition(": ")
    number, _, parts = name.partition("-of-")
    assert int(number) == int(parts) - 1 > 0
    assert f"row {count - 87}: expected finite numbers, got nan" in reason


def test_by_default_nothing_is_begun_after_a_file_that_cannot_be_opened(pool, tmp_path):
    bundle, _ = pool
    write_parquet(tmp_path / "a.parquet", registers(5))
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    inputs = tmp_path / "[ab].parquet"
    code, out, err = run_command("run", bundle, inputs, "-o", tmp_path / "out")
    assert code == 1
    assert "failed b: input" in err
    assert "1 not begun" in out
    assert "--on-error skip goes on" in out
    assert results_of(tmp_path / "out") == {}
    write_parquet(tmp_path / "b.parquet", registers(5, 1))
    assert run_command("run", bundle, inputs, "-o", tmp_path / "out")[0] == 0
    assert run_command("run", "--status", tmp_path / "out")[0] == 0


def test_by_default_nothing_is_begun_after_a_file_that_fails_but_what_has_begun_is_kept(pool, tmp_path):
    bundle, _ = pool
    names = ["a", "b", "c", "d", "e"]
    for name in names:
        rows = registers(5)
        if name == "b":
            rows[3] = np.inf
        write_parquet(tmp_path / f"{name}.parquet", rows)
    arguments = ("run", bundle, tmp_path / "?.parquet", "-o", tmp_path / "out", "--workers", 1)
    code, out, err = run_command(*arguments)
    assert code == 1
    assert "failed b: column 'registers': row 3:" in err
    assert "3 not begun" in out
    assert results_of(tmp_path / "out").keys() == {"a.parquet"}
    write_parquet(tmp_path / "b.parquet", registers(5))
    assert "1 done before" in run_command(*arguments)[1]


CHANGES = {
    "changed": ("os.utime(os.environ['INPUT'], ns=(0, 0))", "expected a file that is not changed while it is read"),
    "cut": ("os.truncate(os.environ['INPUT'], 4096)", "expected a file that is not changed while it is read"),
    "deleted": ("os.path.exists(os.environ['INPUT']) and os.unlink(os.environ['INPUT'])", "No such file or directory"),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_changed_while_it_is_read_fails_alone(meddling, tmp_path, monkeypatch, kind, change):
    """A mapped Arrow file that is cut ends its worker by SIGBUS; the second worker finds it changed."""
    code, reason = CHANGES[change]
    path = tmp_path / f"a.{kind}"
    monkeypatch.setenv("INPUT", str(path))
    WRITERS[kind](path, registers(20_000))
    bundle = meddling(code)
    WRITERS[kind](tmp_path / f"b.{kind}", registers(20))
    inputs = (path, tmp_path / f"b.{kind}")
    arguments = ("run", bundle, *inputs, "-o", tmp_path / "out", "--on-error", "skip", "--batch", 20, "--workers", 1)
    code, _, err = run_command(*arguments)
    assert code == 1
    [line] = err.splitlines()
    assert f"failed a: input {path}: " in line
    assert reason in line
    assert results_of(tmp_path / "out").keys() == {f"b.{kind}"}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_at_an_address_that_is_changed_while_it_is_read_fails(meddling, tmp_path, monkeypatch, change):
    path = tmp_path / "a.parquet"
    monkeypatch.setenv("INPUT", str(path))
    write_parquet(path, registers(20_000))
    bundle = meddling(CHANGES[change][0])
    code, _, err = run_command("run", bundle, path.as_uri(), "-o", tmp_path / "out", "--batch", 20, "--workers", 1)
    assert code == 1
    assert f"failed a: input {path.as_uri()}: " in err
    assert CHANGES[change][1] in err
    assert results_of(tmp_path / "out") == {}


DELETED = "for name in ('b', 'c'): os.path.exists(p := os.environ['INPUT'] + name + '.parquet') and os.unlink(p)"


def test_a_file_that_is_deleted_between_planning_and_reading_fails_alone(meddling, tmp_path, monkeypatch):
    monkeypatch.setenv("INPUT", f"{tmp_path}{os.sep}")
    for name in "abcd":
        write_parquet(tmp_path / f"{name}.parquet", registers(5))
    bundle = meddling(DELETED)
    arguments = ("run", bundle, tmp_path / "?.parquet", "-o", tmp_path / "out", "--on-error", "skip", "--workers", 1)
    code, _, err = run_command(*arguments)
    assert code == 1
    assert [line.partition(":")[0] for line in err.splitlines()] == ["failed b", "failed c"]
    assert err.count("No such file or directory") == 2
    assert results_of(tmp_path / "out").keys() == {"a.parquet", "d.parquet"}


ERRORS = {
    "raise ValueError('no')": "strategy 'meddling:meddle': ValueError: no",
    "raise OSError(5, 'no')": "strategy 'meddling:meddle': OSError: ",
    "raise Exception('no')": "Exception: no",
    "os._exit(3)": "its process ended with exit code 3, without an answer, 2 times",
    "os.kill(os.getpid(), signal.SIGBUS)": "its process ended with SIGBUS (a file became shorter",
    "os.kill(os.getpid(), signal.SIGKILL)": "its process ended with SIGKILL (the system may have had no memory left)",
}


@pytest.mark.parametrize(("code", "reason"), ERRORS.items())
def test_a_file_whose_readout_fails_or_ends_its_process_fails_alone(meddling, tmp_path, code, reason):
    rows = registers(5)
    write_parquet(tmp_path / "a.parquet", rows)
    rows[0, 0, 0] = 99
    write_parquet(tmp_path / "b.parquet", rows)
    write_parquet(tmp_path / "c.parquet", registers(5))
    bundle = meddling(f"if registers[0, 0, 0] == 99: {code if code.startswith('os') else f'exec({code!r})'}")
    arguments = ("run", bundle, tmp_path / "?.parquet", "-o", tmp_path / "out", "--on-error", "skip")
    code, _, err = run_command(*arguments)
    assert code == 1
    [line] = err.splitlines()
    assert line.startswith("failed b: ")
    assert reason in line
    assert results_of(tmp_path / "out").keys() == {"a.parquet", "c.parquet"}
    assert [line["failed"] for line in journal_of(tmp_path / "out") if "failed" in line] == ["b"]
