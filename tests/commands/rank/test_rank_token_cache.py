"""`regplug cache` lists and deletes tokens as it does programs."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from regplug import ExportError
from regplug.commands.rank.reading import token_cache
from regplug.commands.rank.reading.tokens import read_samples


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "t.npz"
    registers = np.random.default_rng(0).random((40, 3, 4), dtype=np.float32)
    np.savez(path, registers=registers, labels=np.arange(40) % 2)
    return Path(read_samples(None, path).facts["file"])


def test_tokens_are_listed_with_what_they_are_of(kept, run):
    code, out, _ = run("cache")
    assert code == 0
    head, row, total = out.splitlines()
    assert head.split() == ["tokens", "of", "data", "samples", "R", "D", "state", "kB", "last", "used"]
    assert row.startswith("a file of tokens  ")
    assert " 40       3  4  complete  " in row
    assert total.startswith("1 entries, ")
    found = json.loads(run("cache", "--json")[1])["tokens"]
    assert [(one["folder"], one["whole"], one["of"]["samples"]) for one in found] == [(kept.parent.name, True, 40)]


def test_prune_deletes_tokens_that_were_not_used_lately(kept, run):
    assert json.loads(run("cache", "prune", "--json")[1])["deleted"] == []
    for path in kept.parent.iterdir():
        os.utime(path, (0, time.time() - 31 * 86400))
    code, out, _ = run("cache", "prune")
    assert (code, out.split()[:2]) == (0, ["deleted", "1"])
    assert not kept.parent.exists()


def test_tokens_that_a_process_reads_now_are_not_deleted(kept, run):
    with (kept.parent / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run("cache", "prune", "--days", "0")[1].startswith("deleted 0 entries")
    assert kept.exists()


def test_a_process_that_waits_for_another_one_says_so(kept, tmp_path):
    kept.unlink()
    steps = []
    with (kept.parent / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def say(step):
            steps.append(step)
            if step.startswith("waiting"):
                fcntl.flock(lock, fcntl.LOCK_UN)

        read_samples(None, tmp_path / "t.npz", progress=say)
    assert steps[2:4] == ["waiting for another process, which reads the same data", "32 of 40 samples"]


def test_a_damaged_folder_is_listed_and_deleted(kept, run):
    (kept.parent / "about.json").write_text("{")
    assert run("cache")[1].splitlines()[1].startswith("damaged ")
    run("cache", "prune")
    assert not kept.parent.exists()


def test_an_interrupted_folder_is_listed_as_such(kept, run):
    kept.unlink()
    assert " interrupted " in run("cache")[1]


def test_a_folder_that_others_may_write_into_is_not_used(kept, tmp_path):
    kept.unlink()
    kept.parent.chmod(0o777)
    with pytest.raises(ExportError, match="cannot be written: the folder is not this user's alone, others may write"):
        read_samples(None, tmp_path / "t.npz")


def test_what_a_dead_process_left_half_written_is_swept(kept, tmp_path):
    half = kept.parent / f"{token_cache.WRITING}{'0' * 12}"
    half.write_text("half")
    kept.unlink()
    read_samples(None, tmp_path / "t.npz")
    assert not half.exists()


def test_without_pillow_one_line_says_how_to_install_it(tmp_path, run_python):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"")
    root = Path(token_cache.__file__).parents[3]
    done = run_python(
        "import sys; sys.modules['PIL'] = None\nfrom regplug.commands.rank.reading.data import open_source\n"
        "from regplug.commands.rank.reading.pictures import decode\n"
        f"(batch,) = open_source({str(tmp_path)!r}).batches(0, 1)\n"
        "try: decode(batch[0])\nexcept Exception as error: print(error)",
        [root],
    )
    assert "use pip install 'regplug[images]'." in done.stdout, done.stderr
