"""A sample of failing system calls; and the judge detects a writer that is wrong."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import run_command

from torture import failing
from torture.tracing import CALLS, tool, traced


@pytest.mark.torture
def test_a_writer_loses_nothing_when_its_calls_fail_or_it_is_killed(tmp_path):
    figures = failing.run(tmp_path, 0.03, 0, lambda word: None)
    assert [figure.what for figure in figures] == [
        "calls of a new bundle",
        "calls of a replaced bundle",
        "calls of two single files",
        "calls of a filled folder",
    ]
    for figure in figures:
        assert figure.ok, figure
        assert figure.tried >= 12


CALL = re.compile(r"^(?:\d+ +)?(\w+)\(")
LOOKS = {"newfstatat", "readlink", "openat", "fstat", "getdents64", "close", "access", "fcntl"}
LOOKS |= {"read", "lseek", "ioctl"}  # at the manifest of what is to be replaced


def calls_on(folder, log):
    """The names of the calls whose path, or descriptor's path, lies in the folder."""
    lines = [line for line in log.read_text().splitlines() if f"{folder}/" in line and "execve" not in line]
    return [CALL.match(line)[1] for line in lines if CALL.match(line)]


@pytest.mark.slow
def test_the_export_command_makes_the_calls_that_the_battery_fails_and_only_reads_before(tmp_path):
    """The battery runs the writer alone, because importing torch for each call would take an hour."""
    export = ["export", "mean", "--num-registers", "4", "--hidden-dim", "24", "--force", "--output"]
    assert run_command(*export, tmp_path / "made" / "b")[0] == 0
    command = [Path(sys.executable).with_name("regplug"), *export]
    for place in ("by-command", "by-writer"):  # these are replaced
        shutil.copytree(tmp_path / "made" / "b", tmp_path / place / "b")
        (tmp_path / place / "b" / "README.md").write_text("# mine\n")
    log = tmp_path / "log"
    options = ["-f", "-y", "-e", f"trace={CALLS}", "-e", "signal=none"]
    by_command = [tool(), *options, "-o", log, *command, tmp_path / "by-command" / "b"]
    subprocess.run(by_command, check=True, capture_output=True)
    made = calls_on(tmp_path / "by-command", log)
    assert traced(log, ["folder", tmp_path / "by-writer" / "b", tmp_path / "made" / "b"], "-y").returncode == 0
    written = calls_on(tmp_path / "by-writer", log)
    assert {"mkdir", "renameat2", "fsync", "write", "fchmod"} <= set(written)
    assert made[len(made) - len(written) :] == written
    assert set(made[: len(made) - len(written)]) <= LOOKS


@pytest.fixture(scope="module")
def replaced(tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    return work, failing.scenarios(work)[1]


@pytest.mark.slow
def test_lost_bundles_mixtures_and_leftovers_are_counted(replaced):
    work, scenario = replaced
    for seen, word in (("refused", failing.LOST), ("nothing", failing.LOST), ("mixture", failing.CORRUPT)):
        looks = iter([seen, "new"])
        wrong = replace(scenario, look=lambda folder, looks=looks: next(looks))
        calls = failing.record(scenario, work / "recorded")
        assert word in failing.one(wrong, work / "try", calls, 0, "killed")
    lazy = replace(scenario, again=lambda folder: None)
    last = next(n for n, call in enumerate(calls) if call.name == "renameat2") + 1
    assert failing.one(lazy, work / "try", calls, last, "killed") == [failing.LEFT]


@pytest.mark.slow
def test_a_call_that_did_not_fail_is_counted(replaced):
    work, scenario = replaced
    calls = failing.record(scenario, work / "recorded")
    elsewhere = [replace(call, number=call.number + 9000) for call in calls]
    assert failing.one(scenario, work / "try", elsewhere, 0, "I/O error") == [failing.MISSED]


@pytest.mark.parametrize(
    ("code", "out", "err", "found", "bad"),
    [
        (0, "ok\n", "", "new", []),
        (0, "ok\n", "", "old", [failing.UNTRUE]),
        (1, "bundle b: cannot be written: X; nothing was changed.\n", "", "old", []),
        (1, "bundle b: cannot be written: X; nothing was changed.\n", "", "new", [failing.UNTRUE]),
        (1, "bundle b: the new bundle is there.\n", "", "new", []),
        (1, "", "Traceback (most recent call last):", "old", [failing.TRACEBACKS]),
        (1, "bundle b: one\nand two\n", "", "old", [failing.TRACEBACKS]),
        (130, "interrupted\n", "", "old", []),
    ],
)
def test_a_writers_message_is_compared_with_what_is_there(code, out, err, found, bad):
    assert failing.judge_message(code, out, err, found) == bad
