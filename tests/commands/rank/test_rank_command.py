"""``regplug rank`` on files: what it prints and writes, how it is interrupted and goes on, and what it refuses."""

import functools
import json
import os
import signal
import subprocess
import time
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from support.commands import run_command
from support.distributions import write_distribution
from support.environment import take_interrupts
from support.ranked_samples import sources

import regplug
from regplug.backends.python_child import python_command
from regplug.bundle.load import load

FAST = ["--seeds", "2", "--folds", "3", "--epochs", "6", "--jobs", "1"]
TWO = ["--strategies", "mean,concat"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """300 samples' registers; register 2 says the class."""
    made = sources(300)
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    names = np.array(["one", "three", "two"])[made.targets.numpy()]
    np.savez(path, registers=made.tokens["registers"].numpy(), labels=names)
    return path


@pytest.fixture
def rank(tmp_path, file):
    """Run ``regplug rank`` on that file, with a cache of its own."""
    return functools.partial(run_command, "rank", "--data", file, "--cache", tmp_path / "cache", *FAST)


def test_the_table_has_the_best_first_and_says_who_won(rank):
    code, out, err = rank(*TWO)
    assert (code, err) == (0, "")
    origin, _, heads, first, *lines = out.splitlines()
    assert "samples 300" in origin
    assert "linear head, 2 seeds of 3 folds" in origin
    assert heads.split()[:2] == ["strategy", "accuracy"]
    assert first.split()[:2] == ["1", "concat"]
    assert [line.split()[1] for line in lines[:2]] == ["mean", "constant"]
    assert any(line.startswith("concat is better than every other strategy, by at least ") for line in lines)


def test_json_says_the_same(rank):
    code, out, _ = rank(*TWO, "--json")
    found = json.loads(out)
    assert (code, found["schema"], found["winner"], found["metric"]) == (0, "regplug.rank/1", "concat", "accuracy")
    assert found["samples"]["samples"] == 300
    assert found["plan"]["seeds"] == 2


def test_the_winner_is_written_as_a_bundle_that_is_the_readout_trained_on_all(rank, tmp_path):
    code, out, _ = rank("--strategies", "mean,pool", "-o", tmp_path / "bundle")
    assert code == 0
    assert out.splitlines()[-1] == f"wrote {tmp_path / 'bundle'}"
    pool = load(tmp_path / "bundle")
    weights = pool.logits.softmax(0)
    assert int(weights.argmax()) == 2  # the register that says the class
    assert weights.max() > 0.5


def test_without_a_winner_no_bundle_is_written(rank, tmp_path):
    code, out, _ = rank("--strategies", "mean,sum", "-o", tmp_path / "bundle")
    assert code == 0
    assert out.splitlines()[-1] == f"{tmp_path / 'bundle'} was not written: there is no winner."
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_that_exists_is_refused_before_training(rank, tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("")
    code, _, err = rank(*TWO, "-o", tmp_path / "bundle")
    assert code != 0
    assert "bundle" in err
    assert not (tmp_path / "cache").exists()


def test_the_page_has_pictures_and_every_row(rank, tmp_path):
    rank(*TWO, "--html", tmp_path / "page.html", "--margin", "0.01")
    text = (tmp_path / "page.html").read_text()
    root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
    pictures = [*root.iter("svg")]
    assert len(pictures) >= 3
    assert all(picture.find("title").text and picture.find("desc").text for picture in pictures)
    rows = [["".join(cell.itertext()) for cell in line] for line in root.iter("tr")]
    assert [row[1] for row in rows] == ["strategy", "concat", "mean", "constant"]
    assert "<script" not in text
    assert "http" not in text


def test_options_belong_to_the_name_before_them(rank):
    code, out, _ = rank(
        "--strategies", "compress-concat,compressed_dim=2,mean", "--strategies", "mean-std,eps=0.1", "--json"
    )
    assert code == 0
    options = {row["name"]: row["spec"] and row["spec"]["options"] for row in json.loads(out)["rows"]}
    assert options["compress-concat"] == {"compressed_dim": 2}
    assert options["mean-std"] == {"eps": 0.1}
    assert options["mean"] == {}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--strategies", "eps=1"], 2, "expected a strategy before its option, got 'eps=1'"),
        (["--strategies", "mean,,pool"], 2, "expected names with commas between them"),
        (["--strategies", "meen"], 2, "meen"),
        (["--strategies", "mean", "--film", "kernel_hidden_dim=4"], 2, "--film: expected --film-generator"),
        (
            ["--strategies", "mean", "--film-generator", "kernel-film"],
            2,
            "film: expected samples with a mean of patches",
        ),
        (["--strategies", "mean", "--margin", "-1"], 2, "rank: margin: expected a positive number, got -1.0"),
        (["--strategies", "mean", "--html", "/nowhere/page.html"], 2, "--html: expected a folder that can be written"),
        (["--strategies", "mean", "--labels", "nothing"], 2, "nothing"),
        (["--strategies", "mean", "--folds", "200"], 2, "fold"),
    ],
)
def test_what_cannot_be_ranked_is_refused_in_one_line(rank, words, code, message):
    got, out, err = rank(*words)
    assert (got, out) == (code, "")
    assert message in err
    assert len(err.splitlines()[-1]) < 450


def test_regression_and_groups_are_read_from_the_file(tmp_path):
    made = sources(300, "numbers")
    path = tmp_path / "samples.safetensors"
    arrays = {"registers": made.tokens["registers"].numpy(), "height": made.targets.numpy()}
    save_file({**arrays, "of": np.arange(300) // 2}, path)
    words = ["--labels", "height", "--groups", "of", "--cache", tmp_path / "cache", "--strategies", "concat"]
    code, out, err = run_command("rank", "--data", path, *words, *FAST, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["metric"] == "R2"
    assert found["rows"][0]["score"] > 0.5


# ---- real processes


def start(tmp_path, file, *words, **environment):
    """``regplug rank`` as a process of its own; its workers are in its group."""
    command = python_command("regplug", "rank", "--data", str(file), "--cache", str(tmp_path / "cache"), *words)
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": take_interrupts}
    return subprocess.Popen(command, env=os.environ | environment, start_new_session=True, **more)


def wait_for(look):
    """What a function finds, asked until it is something."""
    for _ in range(1200):
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError("nothing in a minute")


def wait_for_results(folder, count):
    wait_for(lambda: folder.is_dir() and len([*folder.glob("*.safetensors")]) >= count)


LONG = [*TWO, "--seeds", "3", "--folds", "5", "--epochs", "60"]


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_a_ranking_that_is_ended_goes_on_where_it_was(tmp_path, file, with_signal):
    process = start(tmp_path, file, *LONG, "--jobs", "2")
    wait_for_results(tmp_path / "cache" / "scores", 5)
    process.send_signal(with_signal)
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    if with_signal == signal.SIGINT:
        assert err.splitlines()[-1] == "interrupted"
    kept = {path: path.stat().st_ino for path in (tmp_path / "cache" / "scores").glob("*.safetensors")}
    assert 5 <= len(kept) < 45
    again = start(tmp_path, file, *LONG, "--jobs", "1", "--json")
    out, err = again.communicate(timeout=300)
    assert (again.returncode, err) == (0, "")
    assert json.loads(out)["winner"] == "concat"
    assert {path: path.stat().st_ino for path in kept} == kept
    assert len([*(tmp_path / "cache" / "scores").glob("*.safetensors")]) == 45


def test_the_next_ranking_deletes_the_files_of_a_killed_one_and_not_those_of_a_running_one(tmp_path, file):
    place = tmp_path / "temporary"
    place.mkdir()
    first = start(tmp_path, file, *LONG, "--epochs", "9999", "--jobs", "2", TMPDIR=str(place))
    [left] = wait_for(lambda: [one.parent for one in place.glob("regplug-rank-*/targets")])

    def run_another(epochs):
        words = [*TWO, *FAST, "--jobs", "2", "--epochs", epochs]  # other epochs: scores that are kept need no files
        process = start(tmp_path, file, *words, TMPDIR=str(place))
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")

    run_another("2")
    assert [*place.glob("regplug-*")] == [left]
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=30)
    assert (left / "registers").is_file()
    run_another("3")
    assert not [*place.glob("regplug-*")]


def test_a_full_disk_is_one_line_and_what_was_trained_is_kept(tmp_path, file):
    """A limit on the size of files stands for it: tokens and the first strategy's scores are there already."""
    start(tmp_path, file, "--strategies", "concat", *FAST).communicate(timeout=120)
    kept = {*(tmp_path / "cache" / "scores").iterdir()}
    command = python_command("regplug", "rank", "--data", str(file), "--cache", str(tmp_path / "cache"), *TWO, *FAST)
    limited = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", *command]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "cannot be written: File too large" in line
    assert line.endswith("make room, or choose another folder (--cache), and run the same again.")
    assert kept <= {*(tmp_path / "cache" / "scores").iterdir()}
    assert not [path for path in (tmp_path / "cache" / "scores").iterdir() if path.name.startswith(".")]


DYING = """
import os, torch
from torch import nn

class Dying(nn.Module):
    def __init__(self, num_registers, hidden_dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_dim))
    def forward(self, registers):
        if self.training and registers.device.type == "cpu":
            os._exit(3)
        return registers.mean(1) * self.weight
"""


def test_a_strategy_that_ends_its_process_is_a_row_and_the_others_go_on(tmp_path, file):
    site = tmp_path / "site"
    points = {"regplug_readouts_v1": {"dying": "dying:Dying"}}
    write_distribution(site, "dying-readouts", {"dying.py": DYING}, points)
    words = ["--strategies", "mean,dying,concat", *FAST[:-2], "--jobs", "2", "--json"]
    process = start(tmp_path, file, *words, PYTHONPATH=os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = json.loads(out)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["dying"]["error"] == "its process ended with exit code 3, without an answer"
    assert found["winner"] == "concat"


def test_python_ranks_tensors(tmp_path):
    made = sources(300)
    samples = regplug.Samples(made.tokens["registers"], made.targets, ("a", "b", "c"))
    options = {"seeds": 2, "folds": 3, "epochs": 6, "jobs": 1, "cache": tmp_path}
    found = regplug.rank(samples, ["mean", ("select-concat", {"indices": [2]})], **options)
    assert found.winner == "select-concat"
    with pytest.raises(regplug.SpecError, match=r"strategy 'mean': expected a spec of R=6, D=8, got num_registers=5"):
        regplug.rank(samples, [regplug.resolve("mean", num_registers=5, hidden_dim=8)], **options)
    assert torch.equal(made.tokens["registers"], sources(300).tokens["registers"])


def test_the_cache_command_counts_and_deletes_scores(rank, tmp_path, monkeypatch):
    rank(*TWO)
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").chmod(0o700)
    assert "scores of 18 trainings, " in run_command("cache")[1]
    assert json.loads(run_command("cache", "--json")[1])["scores"] == 18
    assert "deleted 0 entries" in run_command("cache", "prune")[1]
    assert json.loads(run_command("cache", "prune", "--days", "0", "--json")[1])["bytes"] > 0
    assert not [*(tmp_path / "cache" / "scores").iterdir()]
