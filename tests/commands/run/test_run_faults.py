"""Real runs that are killed, interrupted, or have no space left.

| what happens | what is checked |
|---|---|
| SIGKILL of a worker, at random moments | the run completes: another worker runs its file |
| SIGKILL of the run, at random moments | its workers end within two seconds; the same command does the rest |
| SIGINT of the run, or of all processes as at a terminal | exit code 130, one line; no worker, no unfinished file |
| no space for a result, for the journal | an error that names the file; earlier results are kept |

After each, or after the same command was run again: every row exactly once, the bytes of an undisturbed run, and
``--status`` says complete. ``make torture`` kills ten times as often: ``tests/torture/killing.py``.
"""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import run_command
from support.environment import clean_environment
from support.real_runs import (
    JOURNAL,
    done_in,
    faults_of,
    results_of,
    run_to_end,
    session_of,
    started,
    wait_for,
    write_inputs,
    write_rows,
)
from support.token_files import registers
from torture import killing


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return killing.Place(tmp_path_factory.mktemp("place"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_after_a_worker_was_killed_the_run_completes(place, seed):
    assert killing.kill_worker(place, random.Random(seed)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_after_the_run_was_killed_its_workers_end_and_the_same_command_does_the_rest(place, seed):
    assert killing.kill_run(place, random.Random(seed)) == []


def test_lost_rows_rows_twice_other_bytes_and_leftovers_are_detected(tmp_path):
    def written(name):
        return write_inputs(tmp_path / name, files=2, rows=3)

    right = written("right")
    assert faults_of(written("same"), right) == []
    (written("lost") / "part-000.parquet").unlink()
    assert faults_of(tmp_path / "lost", right) == ["part-000.parquet: missing", "rows: other ids"]
    write_rows(written("twice") / "part-000-00000-of-00002.parquet", 0, registers(3))
    assert faults_of(tmp_path / "twice", right) == ["part-000-00000-of-00002.parquet: not a result", "rows: other ids"]
    write_rows(written("other") / "part-000.parquet", 0, registers(3, 9))
    assert faults_of(tmp_path / "other", right) == ["part-000.parquet: other bytes"]
    (written("left") / ".regplug-run-0123456789ab").touch()
    assert faults_of(tmp_path / "left", right) == [".regplug-run-0123456789ab: not a result"]


def arguments(meddling, files, out):
    return meddling.bundle, files, "-o", out, "--carry", "id", "--workers", 2


def site_of(meddling):
    return {"PYTHONPATH": str(meddling.site)}


STOP_AFTER_TWO = """
import time, fcntl
if len(registers) == 20:  # not a check of the bundle
    with open(os.environ["PLACE"], "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"x")
        file.flush()
        waits = os.fstat(file.fileno()).st_size > 2
    if waits:
        time.sleep(600)
"""


@pytest.mark.parametrize("whom", ["the run", "all"])
def test_an_interrupted_run_says_how_to_go_on_and_leaves_nothing_behind(
    meddling_bundle, six_files, undisturbed, tmp_path, whom
):
    out, place = tmp_path / "out", tmp_path / "place"
    env = {"MEDDLE": STOP_AFTER_TWO, "PLACE": str(place), **site_of(meddling_bundle)}
    with started(*arguments(meddling_bundle, six_files, out), env=env) as run:
        assert wait_for(lambda: done_in(out) == 2 and place.stat().st_size == 4)
        if whom == "all":  # as Ctrl-C at a terminal
            os.killpg(run.process.pid, signal.SIGINT)
        else:
            run.process.send_signal(signal.SIGINT)
        assert run.end() == 130
        assert run.err == "interrupted: what is done is kept; run the command again to do the rest.\n"
        assert run.out == ""
        assert session_of(run.process.pid) == []
    assert len(results_of(out)) == 2
    assert run_command("run", "--status", out)[0] == 1
    again = run_to_end(*arguments(meddling_bundle, six_files, out), env=site_of(meddling_bundle))
    assert again.process.returncode == 0, again.err
    assert "2 done before" in again.out
    assert faults_of(out, undisturbed) == []
    assert run_command("run", "--status", out)[0] == 0


def test_an_interrupt_at_any_moment_of_the_start_leaves_no_traceback_of_a_worker(meddling_bundle, six_files, tmp_path):
    out = tmp_path / "out"
    with started(*arguments(meddling_bundle, six_files, out), env=site_of(meddling_bundle)) as run:
        assert wait_for(lambda: bool(run.others()))  # they import their modules now
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.end() == 130
        assert run.err == "interrupted: what is done is kept; run the command again to do the rest.\n"


def test_a_file_whose_workers_die_is_reported_and_the_others_are_run(meddling_bundle, six_files, tmp_path):
    """The first file's worker dies once, the second one's each time."""
    code = f"""
id = int(registers[0, 0, 0] * 1e6)
place = {str(tmp_path)!r} + "/died"
if id == {first_value(1)} or id == {first_value(0)} and not os.path.exists(place):
    open(place, "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    env = {"MEDDLE": code, **site_of(meddling_bundle)}
    run = run_to_end(*arguments(meddling_bundle, six_files, tmp_path / "out"), "--on-error", "skip", env=env)
    assert run.process.returncode == 1
    assert run.err == (
        "failed part-001: its process ended with SIGKILL (the system may have had no memory left), without an answer, "
        "2 times\n"
    )
    assert results_of(tmp_path / "out").keys() == {f"part-00{number}.parquet" for number in (0, 2, 3, 4, 5)}


def first_value(seed):
    import torch

    return int(torch.from_numpy(registers(20, seed))[0, 0, 0] * 1e6)


def test_without_space_for_results_each_is_reported_and_a_rerun_completes(
    meddling_bundle, six_files, undisturbed, tmp_path
):
    out = tmp_path / "out"
    first = (meddling_bundle.bundle, six_files / "part-000.parquet", "-o", out, "--carry", "id")
    assert run_to_end(*first, env=site_of(meddling_bundle)).process.returncode == 0
    before = results_of(out)
    one = arguments(meddling_bundle, six_files, out)
    run = run_to_end(*one, "--on-error", "skip", env=site_of(meddling_bundle), before="ulimit -f 2")
    assert run.process.returncode == 1
    lines = sorted(run.err.splitlines())
    assert lines == [
        f"failed part-00{number}: results {out}/part-00{number}.parquet: File too large" for number in range(1, 6)
    ]
    assert results_of(out) == before
    assert run_to_end(*one, env=site_of(meddling_bundle)).process.returncode == 0
    assert faults_of(out, undisturbed) == []
    assert run_command("run", "--status", out)[0] == 0


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=80k none "$DISK" || exit 77
run() { "$PYTHON" -m regplug run "$BUNDLE" "$INPUTS" -o "$DISK/out" --carry id --workers 2 "$@"; }
cat /dev/zero > "$DISK/filler" 2> /dev/null
full=$(stat -c %s "$DISK/filler")
for free in 0 4096 12288 24576; do
    truncate -s $((full - free)) "$DISK/filler"
    run --on-error skip
    echo "code $?"
done
rm "$DISK/filler"
run
echo "code $?"
cp -r "$DISK/out" "$COPY"
"""


def test_on_a_full_disk_nothing_is_lost_and_a_rerun_with_space_completes(
    meddling_bundle, six_files, undisturbed, tmp_path
):
    """The more is free, the later it fails: at the journal's first line, at a result, at a later line."""
    (tmp_path / "disk").mkdir()
    own = {"DISK": tmp_path / "disk", "COPY": tmp_path / "copy", "PYTHON": sys.executable}
    own |= {"BUNDLE": meddling_bundle.bundle, "INPUTS": six_files, "OMP_NUM_THREADS": 1}
    own["PYTHONPATH"] = f"{Path(killing.regplug.__file__).parents[1]}{os.pathsep}{meddling_bundle.site}"
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "bash", "-c", ON_A_SMALL_DISK],
        env=clean_environment() | {name: str(value) for name, value in own.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip("mounting is not permitted")
    codes = [line for line in done.stdout.splitlines() if line.startswith("code")]
    assert codes == ["code 1"] * 4 + ["code 0"], done.stdout + done.stderr
    journal, *others = done.stderr.splitlines()
    assert journal == f"error: [Errno 28] No space left on device: '{tmp_path}/disk/out/{JOURNAL}'"
    failed = "failed part-000: results {}/disk/out/part-000.parquet: No space left on device"
    assert failed.format(tmp_path) in others
    assert all("No space left on device" in line for line in others)
    assert faults_of(tmp_path / "copy", undisturbed) == []
