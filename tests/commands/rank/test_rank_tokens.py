"""Reading the tokens of all samples: with a backbone, from files of tokens; kept, resumed after a kill, found again."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.picture_backbone import BUILT, D, Pictures, R, entry, preprocess, registry, write_images
from support.plugins import installed_with

import regplug
from regplug import ExportError, SpecError
from regplug.commands.rank.reading import token_cache, tokens
from regplug.commands.rank.reading.data import open_source
from regplug.commands.rank.reading.pictures import decode
from regplug.commands.rank.reading.tokens import read_samples
from regplug.nn.image_input import apply_preprocess

N = 36


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "images", N)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(tokens, "SHARD", 8)


@pytest.fixture(autouse=True)
def count_builds():
    BUILT.clear()


def read(data, tmp_path, backbone="pictures", **options):
    options.setdefault("registry", registry())
    return read_samples(backbone, data, cache=tmp_path / "cache", **options)


def shards(tmp_path):
    return sorted((tmp_path / "cache").rglob("shard-*"))


def by_hand(folder, model):
    images = [decode(one) for batch in open_source(folder).batches(0, N) for one in batch]
    with torch.no_grad():
        return model.eval()(torch.stack([apply_preprocess(one, preprocess(model)) for one in images]))


def test_registers_class_tokens_and_mean_patches_are_those_of_the_model(folder, tmp_path):
    model = Pictures().train()
    model.patch.eval()
    found = read(folder, tmp_path, model)
    assert (model.training, model.patch.training) == (True, False)
    wanted = by_hand(folder, model)
    assert found.registers.shape == (N, R, D)
    assert torch.allclose(found.registers, wanted[:, 1 : 1 + R], atol=1e-6)
    assert set(found.references) == {"cls", "patches"}
    assert torch.allclose(found.references["cls"], wanted[:, 0], atol=1e-6)
    assert torch.allclose(found.references["patches"], wanted[:, 1 + R :].mean(1), atol=1e-6)
    assert found.classes == ("class-0", "class-1", "class-2")
    assert found.targets.tolist() == [number // 12 for number in range(N)]
    assert len(found) == N


def test_the_facts_are_json_and_say_what_was_read(folder, tmp_path):
    facts = read(folder, tmp_path, "pictures:small", model_options={"scale": 2.0}).facts
    assert re.fullmatch("[0-9a-f]{64}", facts["digest"])
    assert Path(facts["file"]).is_file()
    assert {name: facts[name] for name in facts if name not in ("digest", "seconds", "file")} == {
        "data": str(folder),
        "kind": "image folder",
        "content": "pictures",
        "samples": N,
        "backbone": "acme:pictures",
        "model": "small",
        "model_options": {"scale": 2.0},
        "weights": "random",
        "weights_file": None,
        "preprocessing": str(preprocess(None)),
        "normalized": False,
        "num_registers": R,
        "hidden_dim": D,
        "references": ["cls", "patches"],
        "duplicates": 0,
        "empty_folders": {"count": 0, "first": []},
        "unlabelled_images": {"count": 0, "first": []},
        "other_files": 0,
        "task": "classification",
        "cache_hit": False,
        "resumed_from": 0,
    }


def test_a_second_run_builds_no_backbone_and_gives_the_same(folder, tmp_path):
    first = read(folder, tmp_path)
    second = read(folder, tmp_path)
    assert BUILT == [None]
    assert torch.equal(first.registers, second.registers)
    assert (first.facts["cache_hit"], second.facts["cache_hit"]) == (False, True)
    assert second.facts["preprocessing"] == first.facts["preprocessing"]


def test_random_weights_are_the_same_in_each_run_and_the_callers_draws_are_left_alone(folder, tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    first = read(folder, tmp_path)
    assert torch.equal(torch.rand(1), wanted)
    token_cache.delete(tmp_path / "cache")
    assert torch.equal(read(folder, tmp_path).registers, first.registers)


def test_whatever_changes_the_tokens_reads_them_again(folder, tmp_path):
    read(folder, tmp_path)
    weights = tmp_path / "w.safetensors"
    save_file(Pictures().state_dict(), weights)

    def other(image):
        return torch.zeros(3, 8, 8)

    for changed in (
        {"model_options": {"scale": 2.0}},
        {"backbone": "pictures:other"},
        {"weights": weights},
        {"normalized": True},
        {"preprocess": other},
        {"registry": installed_with(entry(), distribution="other")},
    ):
        assert not read(folder, tmp_path, **changed).facts["cache_hit"], changed
    one = folder / "class-0" / "0000.png"
    os.utime(one, ns=(1, 1))
    assert not read(folder, tmp_path).facts["cache_hit"]
    (folder / "class-0" / "0003.png").unlink()
    assert not read(folder, tmp_path).facts["cache_hit"]


def test_weights_are_loaded_from_safetensors_and_torch_files_and_must_fit(folder, tmp_path):
    torch.manual_seed(3)
    model = Pictures()
    safe, plain = tmp_path / "w.safetensors", tmp_path / "w.pt"
    save_file(model.state_dict(), safe)
    torch.save({"model": model.state_dict()}, plain)
    wanted = by_hand(folder, model)[:, 1 : 1 + R]
    for path in (safe, plain):
        found = read(folder, tmp_path, weights=path)
        assert torch.allclose(found.registers, wanted, atol=1e-6)
        assert re.fullmatch("[0-9a-f]{64}", found.facts["weights"])
        assert found.facts["weights_file"] == str(path)
    state = load_file(safe)
    moved = {("head.weight" if name == "mix.weight" else name): one for name, one in state.items()}
    save_file(moved, safe)
    with pytest.raises(
        SpecError, match=r"expected the 5 tensors of Pictures, got no mix\.weight and unknown head\.weig"
    ):
        read(folder, tmp_path, weights=safe)
    save_file({**state, "mix.weight": torch.zeros(2, 2)}, safe)
    with pytest.raises(SpecError, match=r"mix\.weight: expected \[6, 6\], got \[2, 2\]"):
        read(folder, tmp_path, weights=safe)
    with pytest.raises(SpecError, match=r"^weights /nothing: expected a file, got No such file or directory\.$"):
        read(folder, tmp_path, weights="/nothing")


def test_an_instance_comes_with_its_weights(folder, tmp_path):
    torch.manual_seed(3)
    model = Pictures()
    with pytest.raises(SpecError, match="model Pictures: expected neither options nor weights with an instance"):
        read(folder, tmp_path, model, weights="w")
    first = read(folder, tmp_path, model).facts
    assert not first["cache_hit"]
    assert read(folder, tmp_path, model).facts["cache_hit"]
    with torch.no_grad():
        model.mix.bias += 1
    second = read(folder, tmp_path, model).facts
    assert not second["cache_hit"]
    assert second["weights"] != first["weights"]


def test_labels_are_checked_before_a_backbone_is_built(folder, tmp_path):
    with pytest.raises(SpecError, match="at least 20 samples of each class, one for each fold, got fewer of 'class-0'"):
        read(folder, tmp_path, folds=20)
    assert BUILT == []
    assert not (tmp_path / "cache").exists()


def test_a_backbone_without_preprocessing_is_refused_and_an_own_function_helps(folder, tmp_path):
    for published in (None, lambda model: None):
        with pytest.raises(
            SpecError, match="backbone 'pictures': expected a backbone that says how image files become"
        ):
            read(folder, tmp_path, registry=registry(preprocess=published))

    def own(image):
        return torch.full((3, 8, 8), image.getpixel((0, 0))[0] / 255)

    found = read(folder, tmp_path, registry=registry(preprocess=None), preprocess=own)
    assert "own (sha256 " in found.facts["preprocessing"]


def test_a_backbone_without_registers_or_tokens_is_refused(folder, tmp_path):
    def layout_of(model):
        raise SpecError("model Pictures: carries no register tokens.")

    with pytest.raises(SpecError, match="carries no register tokens"):
        read(folder, tmp_path, registry=registry(layout=layout_of))
    with pytest.raises(SpecError, match="expected a backbone that says how its tokens are read, got none"):
        read(folder, tmp_path, registry=registry(tokens=None))


def test_inputs_that_the_model_does_not_take_are_reported_in_one_line(folder, tmp_path):
    def wrong(image):
        return torch.zeros(5, 8, 8)

    with pytest.raises(
        SpecError, match=r"backbone 'pictures': expected inputs that it takes, got \[32, 5, 8, 8\]: Runti"
    ):
        read(folder, tmp_path, preprocess=wrong)

    def uneven(image):
        return torch.zeros(3, 8, 8 if image.getpixel((0, 0))[0] % 2 else 16)

    with pytest.raises(
        SpecError, match=r"preprocessing of image .*png: expected \[3, 8, \d+\], as before, got \[3, 8,"
    ):
        read(folder, tmp_path, preprocess=uneven)


def test_a_broken_image_is_named_and_what_was_read_before_it_is_kept(folder, tmp_path, small_shards):
    bad = folder / "class-2" / "0035.png"
    data = bad.read_bytes()
    bad.write_bytes(data[:100])
    with pytest.raises(SpecError, match=r"0035\.png: expected an image that Pillow reads"):
        read(folder, tmp_path, batch_size=4)
    assert len(shards(tmp_path)) == 4


def test_a_failing_run_is_resumed_and_gives_what_one_run_gives(folder, tmp_path, small_shards, monkeypatch):
    wanted = read_samples("pictures", folder, cache=tmp_path / "other", registry=registry(), batch_size=4)
    add, calls = token_cache.TokenFolder.add_shard, []

    def fail(self, number, parts):
        calls.append(number)
        if number == 2 and len(calls) == 3:
            raise KeyboardInterrupt
        return add(self, number, parts)

    monkeypatch.setattr(token_cache.TokenFolder, "add_shard", fail)
    with pytest.raises(KeyboardInterrupt):
        read(folder, tmp_path, batch_size=4)
    steps = []
    found = read(folder, tmp_path, batch_size=4, progress=steps.append)
    assert found.facts["resumed_from"] == 16
    assert calls == [0, 1, 2, 2, 3, 4]
    assert torch.equal(found.registers, wanted.registers)
    assert steps[:3] == ["labels", "digest of the data", "building the backbone"]
    assert steps[3] == "20 of 36 samples"
    assert shards(tmp_path) == []


def test_a_damaged_shard_and_those_after_it_are_read_again(folder, tmp_path, small_shards, monkeypatch):
    monkeypatch.setattr(token_cache.TokenFolder, "join", lambda self, shards: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read(folder, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(tokens, "SHARD", 8)
    second = shards(tmp_path)[1]
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    second.write_bytes(data)
    assert read(folder, tmp_path).facts["resumed_from"] == 8


def test_a_damaged_file_of_samples_is_read_again(folder, tmp_path):
    first = read(folder, tmp_path)
    wanted = first.registers.clone()
    path = Path(first.facts["file"])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    second = read(folder, tmp_path)
    assert not second.facts["cache_hit"]
    assert torch.equal(second.registers, wanted)


def test_a_run_that_died_between_joining_and_its_last_line_goes_on_there(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "count_duplicates", lambda registers: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read(folder, tmp_path)
    monkeypatch.undo()
    found = read(folder, tmp_path)
    assert BUILT == [None]
    assert (found.facts["resumed_from"], found.facts["duplicates"]) == (N, 0)
    assert found.facts["preprocessing"] == str(preprocess(None))


KILLED = """
import sys, time
from support.picture_backbone import registry
from regplug.commands.rank.reading import tokens, token_cache
tokens.SHARD = 8
add = token_cache.TokenFolder.add_shard
def slow(self, number, parts):
    print(number, flush=True)
    time.sleep(0.05)
    return add(self, number, parts)
token_cache.TokenFolder.add_shard = slow
samples = tokens.read_samples("pictures", sys.argv[1], cache=sys.argv[2], registry=registry(), batch_size=4)
print("done", samples.facts["resumed_from"], samples.registers.double().sum().item(), flush=True)
"""


def start(folder, cache):
    paths = [str(Path(regplug.__file__).parents[1]), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", KILLED, str(folder), str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_killed_process_is_resumed_wherever_it_was(folder, tmp_path):
    with start(folder, tmp_path / "other") as process:
        wanted = process.stdout.read().split()[-1]
    for number, delay in enumerate((0.0, 0.052, 0.02)):  # before a shard is written, near its end, and in between
        with start(folder, tmp_path / "cache") as process:
            while process.stdout.readline().strip() != str(number):
                pass
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert len(shards(tmp_path)) in (number, number + 1)
    with start(folder, tmp_path / "cache") as process:
        word, resumed, total = process.stdout.read().split()[-3:]
    assert (word, total) == ("done", wanted)
    assert int(resumed) >= 16
    left = {path.name.partition("-")[0] for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert left == {"about.json", ".lock", "samples"}


@pytest.mark.slow
def test_two_processes_at_once_read_the_data_once(folder, tmp_path):
    with start(folder, tmp_path / "cache") as one, start(folder, tmp_path / "cache") as other:
        written = [process.stdout.read().split() for process in (one, other)]
    assert sorted(map(len, written)) == [3, 8]
    assert written[0][-1] == written[1][-1]


def test_a_full_disk_is_reported_and_finished_shards_are_kept(folder, tmp_path, small_shards, monkeypatch):
    real, writes = token_cache.write_all, []

    def full(descriptor, data):
        writes.append(len(data))
        if len(writes) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor, data)

    monkeypatch.setattr(token_cache, "write_all", full)
    with pytest.raises(
        ExportError, match=r"^cache .*tokens/.*: cannot be written: No space left on device; shards .* kept: 2; free"
    ):
        read(folder, tmp_path)
    assert len(shards(tmp_path)) == 2
    assert not list((tmp_path / "cache").rglob(".writing-*"))
    assert read(folder, tmp_path).facts["resumed_from"] == 16


def test_a_cache_that_cannot_be_made_is_reported(folder, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ExportError, match=r"cannot be written: Not a directory; shards finished and kept: 0; see"):
        read(folder, tmp_path)


# ---- files of tokens


def write_tokens(path, count=N, width=D, **more):
    draw = np.random.default_rng(0)
    arrays = {"tokens": draw.random((count, 7, width), dtype=np.float32), "labels": np.arange(count) % 3, **more}
    np.savez(path, **{name: one for name, one in arrays.items() if one is not None})
    return arrays


def test_a_file_of_tokens_is_read_by_the_backbones_layout_which_is_not_built(tmp_path):
    path = tmp_path / "t.npz"
    arrays = write_tokens(path, groups=np.minimum(np.arange(N), 29))
    found = read(path, tmp_path, groups="groups")
    assert BUILT == []
    assert np.array_equal(found.registers, arrays["tokens"][:, 1 : 1 + R])
    assert np.allclose(found.references["patches"], arrays["tokens"][:, 1 + R :].mean(1))
    assert found.groups.tolist() == arrays["groups"].tolist()
    assert found.facts["preprocessing"] is None
    assert read(path, tmp_path).facts["cache_hit"]


def test_a_layout_may_stand_in_for_a_backbone_and_registers_need_neither(tmp_path):
    path = tmp_path / "t.npz"
    arrays = write_tokens(path)
    layout = regplug.TokenLayout(num_registers=3, hidden_dim=D, start=-3)
    found = read(path, tmp_path, None, layout=layout)
    assert np.array_equal(found.registers, arrays["tokens"][:, -3:])
    assert (dict(found.references), found.facts["backbone"]) == ({}, None)
    with pytest.raises(SpecError, match="expected a backbone or a layout that says where the registers are, got none"):
        read(path, tmp_path, None)
    np.savez(path, registers=arrays["tokens"], cls=arrays["tokens"][:, 0], labels=arrays["labels"])
    found = read(path, tmp_path, None)
    assert np.array_equal(found.registers, arrays["tokens"])
    assert np.array_equal(found.references["cls"], arrays["tokens"][:, 0])


def test_tokens_of_another_width_or_number_are_refused(tmp_path):
    path = tmp_path / "t.npz"
    arrays = write_tokens(path, width=D + 1)
    with pytest.raises(SpecError, match=r"tokens: expected \[n, T, 6\] with T >= 3, as the backbone .* \[n, 7, 7\]\.$"):
        read(path, tmp_path)
    np.savez(path, registers=arrays["tokens"], labels=arrays["labels"])
    with pytest.raises(SpecError, match=r"registers: expected \[n, 2, 6\], got \[7, 7\]"):
        read(path, tmp_path)


def test_a_number_that_is_not_finite_is_named_with_its_sample(tmp_path):
    path = tmp_path / "t.npz"
    arrays = write_tokens(path)
    arrays["tokens"][17, 2, 3] = np.nan
    np.savez(path, **arrays)
    with pytest.raises(SpecError, match=r"t\.npz: sample 17: registers: expected finite numbers, got nan\.$"):
        read(path, tmp_path)
    arrays["tokens"][17, 2, 3], arrays["tokens"][20, 5, 1] = 0, np.inf
    np.savez(path, **arrays)
    with pytest.raises(SpecError, match=r"sample 20: patches: expected finite numbers, got inf"):
        read(path, tmp_path)


def test_samples_with_equal_registers_are_counted(tmp_path):
    path = tmp_path / "t.npz"
    arrays = write_tokens(path)
    arrays["tokens"][[3, 7]] = arrays["tokens"][0]
    np.savez(path, **arrays)
    assert read(path, tmp_path).facts["duplicates"] == 2


def test_inputs_in_a_file_go_to_the_backbone_as_they_are(tmp_path):
    path = tmp_path / "t.npz"
    images = np.random.default_rng(0).random((N, 3, 8, 8), dtype=np.float32)
    np.savez(path, images=images, labels=np.arange(N) * 0.5)
    model = Pictures()
    found = read(path, tmp_path, model)
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(images))
    assert torch.allclose(found.registers, wanted[:, 1 : 1 + R], atol=1e-6)
    assert (found.classes, found.targets.shape) == (None, (N, 1))
    with pytest.raises(SpecError, match="expected a backbone that reads these images, got none"):
        read(path, tmp_path, None)
    with pytest.raises(SpecError, match="--preprocess: expected none, because there are no image files"):
        read(path, tmp_path, preprocess=lambda image: image)


def test_the_digits_backbone_reads_images_without_channels_from_files(tmp_path):
    found = read(write_images(tmp_path / "images", N, side=8), tmp_path, "digits-vit")
    assert found.registers.shape[0] == N


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path):
    code = """
import re, sys, threading, time
from pathlib import Path
import regplug
from regplug.commands.rank.reading.tokens import read_samples
most = 0
def watch():
    global most
    while True:  # pages of mapped files, which the system may drop, are not counted
        most = max(most, int(re.search("RssAnon:[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1]))
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
layout = regplug.TokenLayout(num_registers=64, hidden_dim=384, start=0)
read_samples(None, sys.argv[1], layout=layout, cache=sys.argv[3])
before = most
read_samples(None, sys.argv[2], layout=layout, cache=sys.argv[3])
print(most - before)
"""
    for name, count in (("small", 256), ("large", 2048)):  # 25 MB and 201 MB
        rows = np.random.default_rng(0).random((count, 64, 384), dtype=np.float32)
        np.savez(tmp_path / f"{name}.npz", tokens=rows, labels=np.arange(count) % 3)
    paths = [str(Path(regplug.__file__).parents[1]), str(Path(__file__).parents[2])]
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "small.npz", tmp_path / "large.npz", tmp_path / "cache"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])},
    )
    assert int(done.stdout) < 50_000, done.stdout  # kB
