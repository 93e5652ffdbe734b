"""Trained weights out of a whole network's checkpoint: what is read, what is refused, what is written."""

import argparse
import contextlib
import functools
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nvsubquadratic.lazy_config import instantiate
from safetensors.torch import load_file, save_file
from support.plugins import registered
from support.readouts import moved
from torch import nn

import regplug
from regplug import TokenLayout
from regplug.commands.import_checkpoint.checkpoint import MAX_HEADER, open_checkpoint
from regplug.commands.import_checkpoint.state_names import own_names, unwrapped, wrapper_prefixes
from regplug.format.weights import read_metadata, save_tensors
from regplug_nvsubquadratic.shipped import Configuration, network_config

R, D, C = 4, 48, 8
START = 17  # 16 patches and CLS
KERNEL = "sequence_mixer.inner_mixer.mixer.global_conv.kernel.film_generator."
NET = ["--backbone", "nvsubquadratic"]


@functools.cache
def network(compressed_dim=C):
    """A small ViT5ClassificationNet of nvSubquadratic: readouts in blocks 0 and 2, no parameter as it began."""
    torch.manual_seed(0)
    net = instantiate(
        network_config(Configuration(R, "cls", "HAH", 2, compressed_dim=compressed_dim, hidden_dim=D, image_size=64))
    )
    return moved(net, 0.1).eval()


def state(**changed):
    """Its state dict; what is changed by name, dots as double underscores."""
    named = {name.replace("__", "."): tensor for name, tensor in changed.items()}
    return {**{name: tensor.clone() for name, tensor in network().state_dict().items()}, **named}


def lightning(state, **more):
    """A checkpoint as Lightning writes one, of a module whose first block is compiled."""
    names = {name: f"network.{name.replace('blocks.0.', 'blocks.0._orig_mod.')}" for name in state}
    return {"epoch": 3, "state_dict": {names[name]: tensor for name, tensor in state.items()}, **more}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def acme():
    """Backbones of a plugin of our own, whose finder is given."""
    with contextlib.ExitStack() as stack:

        def register(weights):
            entry = regplug.BackboneEntry("acme-net", build=dict, layout=dict, readouts=("pool",), weights=weights)
            stack.enter_context(registered(entry))

        yield register


def site(**changed):
    values = {"where": "0", "strategy": "pool", "num_registers": 3, "hidden_dim": 6, "options": {}}
    return regplug.CheckpointSite(**{**values, "readout": {"logits": "pool.logits"}, **changed})


POOL = {"pool.logits": torch.arange(3.0), "norm.weight": torch.ones(6)}
FILM = {
    "film": "regplug:kernel-film",
    "film_options": {"kernel_hidden_dim": 5, "num_film_layers": 1, "film_hidden_dim": 7},
    "film_weights": {key: f"film.{key}" for key in ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias")},
}


def film_state():
    film = regplug.KernelFiLMGenerator(6, 5, 1, film_hidden_dim=7)
    return {**POOL, **{f"film.{name}": tensor for name, tensor in film.state_dict().items()}}


# ---- out of the checkpoint, into a bundle


def test_what_is_imported_exported_and_loaded_gives_upstreams_numbers_to_the_bit(run, here):
    torch.save(lightning(state(), hyper_parameters={"lr": 1e-3}), "net.ckpt")
    for block in (0, 2):
        assert run("import", "net.ckpt", *NET, "--block", block, "-o", f"w{block}.safetensors")[0] == 0
        # neither strategy nor sizes, options, layout and FiLM again: the file says what it is
        code, out, _ = run("export", "--weights", f"w{block}.safetensors", "--no-programs", "-o", f"b{block}")
        assert (code, out.splitlines()[0]) == (
            0,
            f"bundle b{block}: conditioner regplug:compress-concat, cond_dim {R * C}",
        )
        loaded = regplug.load(f"b{block}")
        tokens = torch.randn(3, START + R, D)
        upstream = network().blocks[block]
        with torch.inference_mode():
            wanted = upstream.get_submodule(KERNEL[:-1])(upstream.register_pooling(tokens[:, START:].contiguous()))
            pairs = loaded(tokens)
        assert len(pairs) == len(wanted) == 2
        for pair, other in zip(pairs, wanted, strict=True):
            assert all(map(torch.equal, pair, other))
        assert not torch.equal(pairs[0][0], wanted[0][1])


def test_the_file_says_of_itself_what_an_exported_one_says(run, here):
    save_file(state(), "net.safetensors")
    for more, name in (([], "conditioner"), (["--readout-only"], "readout")):
        weights = f"{name}.safetensors"
        assert run("import", "net.safetensors", *NET, "--block", "0", *more, "-o", weights)[0] == 0
        assert run("export", "--weights", weights, "--no-programs", "-o", name)[0] == 0
        said = read_metadata(name, Path(weights).read_bytes())
        assert said == read_metadata(name, (here / name / "weights.safetensors").read_bytes())
        assert (said["holds"], said["layout"]["start"]) == (name, START)
        assert Path(weights).read_bytes() == (here / name / "weights.safetensors").read_bytes()


WAYS = {
    "safetensors": lambda path: save_file(state(), path),
    "flat": lambda path: torch.save(state(), path),
    "of the time before zip": lambda path: torch.save(lightning(state()), path, _use_new_zipfile_serialization=False),
    "Lightning": lambda path: torch.save(lightning(state()), path),
    "DistributedDataParallel": lambda path: torch.save(
        {"model": {f"module.{name}": tensor for name, tensor in state().items()}, "optimizer": {"state": {}}}, path
    ),
    "a compiled Lightning module": lambda path: save_file(
        {f"_orig_mod.model.{name}": tensor for name, tensor in state().items()}, path
    ),
    "next to a loss": lambda path: torch.save(
        {"state_dict": {**lightning(state())["state_dict"], "loss.weight": torch.ones(2)}, "model_ema": state()}, path
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_weights_are_found_however_they_were_saved(run, here, way):
    WAYS[way]("net")
    code, out, err = run("import", "net", *NET, "--block", "2", "-o", "w.safetensors", "--json")
    assert (code, err) == (0, "")
    found = load_file("w.safetensors")
    assert torch.equal(found["readout.compress.weight"], state()["blocks.2.register_pooling.compress.weight"])
    assert torch.equal(found["film.mlp.2.bias"], state()[f"blocks.2.{KERNEL}mlp.2.bias"])
    said = json.loads(out)
    [readout] = said["readouts"]
    assert said["schema"] == "regplug.import/1"
    assert sorted(readout["tensors"]) == sorted(found)
    assert not set(readout["tensors"].values()) & set(said["left"]["names"])
    total = len(state()) + (way == "next to a loss")
    assert len(readout["tensors"]) + said["left"]["tensors"] == total
    everything = sum(tensor.nbytes for tensor in state().values()) + 8 * (way == "next to a loss")
    assert said["left"]["bytes"] == everything - sum(tensor.nbytes for tensor in found.values())
    assert readout["bytes"] == Path("w.safetensors").stat().st_size
    assert said["other_keys"] == (["model_ema"] if way == "next to a loss" else [])


def test_the_report_says_what_matched_and_what_was_left(run, here):
    torch.save(lightning(state()), "net.ckpt")
    code, out, err = run("import", "net.ckpt", *NET, "--all", "-o", "w.safetensors")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    row = f"0 regplug:compress-concat {R} {D} compressed_dim={C} {R * C} regplug:kernel-film float32 5"
    assert lines[1].split() == row.split()
    assert lines[3] == "read net.ckpt: PyTorch under 'state_dict'"
    assert lines[4] == "prefix taken off: network."
    assert lines[5] == "taken out of names: the parts that torch.compile adds"
    assert lines[6].startswith(f"left {len(state()) - 10} tensors, ")
    assert lines[7].startswith("wrote w.block-0.safetensors: conditioner, ")
    assert sorted(path.name for path in here.iterdir()) == [
        "net.ckpt",
        "w.block-0.safetensors",
        "w.block-2.safetensors",
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_keep_their_dtype_up_to_the_bundle(run, here, dtype):
    torch.save({name: tensor.to(dtype) for name, tensor in state().items()}, "net.pt")
    assert run("import", "net.pt", *NET, "--block", "0", "-o", "w.safetensors")[0] == 0
    code, _, err = run("export", "--weights", "w.safetensors", "--no-programs", "-o", "b")
    assert (code, err) == (0, "")
    assert regplug.load("b").readout.compress.weight.dtype == dtype


def test_an_option_that_shapes_do_not_show_can_be_given(run, here, acme):
    readout = regplug.create("attention", num_registers=3, hidden_dim=6, num_queries=2, num_heads=3)
    weights = {f"head.{name}": tensor for name, tensor in readout.state_dict().items()}
    names = {name.removeprefix("head."): name for name in weights}
    acme(lambda shapes: [site(strategy="attention", options={"num_queries": 2}, readout=names)])
    save_file(weights, "net.safetensors")
    command = ["import", "net.safetensors", "--backbone", "acme-net", "-o", "w.safetensors"]
    assert run(*command, "-O", "num_heads=3")[0] == 0
    assert read_metadata("w", Path("w.safetensors").read_bytes())["options"] == {"num_queries": 2, "num_heads": 3}
    code, _, err = run(*command, "--force", "-O", "num_queries=4")
    assert code == 2
    assert "option 'num_queries': expected 2, as the shapes tell, got 4." in err


def test_a_film_generator_without_a_known_layout_needs_one_or_is_left(run, here, acme):
    acme(lambda shapes: [site(**FILM)])
    save_file(film_state(), "net.safetensors")
    command = ["import", "net.safetensors", "--backbone", "acme-net", "-o", "w.safetensors"]
    code, _, err = run(*command)
    assert code == 2
    assert "layout: expected --layout start=N" in err
    assert run(*command, "--readout-only")[0] == 0
    assert [*load_file("w.safetensors")] == ["logits"]
    assert run(*command, "--layout", "start=2", "--force")[0] == 0
    assert len(load_file("w.safetensors")) == 5
    code, _, err = run("export", "--weights", "w.safetensors", "--layout", "start=3", "-o", "b")
    assert code == 1
    assert "layout: expected {" in err


def test_mamba_regs_neck_becomes_the_readout_mamba_reg(run, here):
    readout = regplug.create("mamba-reg", num_registers=3, hidden_dim=8, ratio=4)
    trained = {**readout.state_dict(), "norm_neck.weight": torch.randn(6)}
    save_file({**trained, "cls_token": torch.zeros(1, 3, 8), "pos_embed": torch.zeros(1, 16, 8)}, "net.safetensors")
    assert run("import", "net.safetensors", "--backbone", "mamba-reg", "-o", "w.safetensors")[0] == 0
    assert run("export", "--weights", "w.safetensors", "--no-programs", "-o", "b")[0] == 0
    registers = torch.randn(2, 3, 8)
    readout.load_state_dict(trained)
    assert torch.equal(regplug.load("b")(registers), readout(registers))


HUGE = 4 << 30


def huge_safetensors():
    """A file with a hole, which takes no disk."""
    header = {"huge": {"dtype": "U8", "shape": [HUGE], "data_offsets": [0, HUGE]}}
    header["logits"] = {"dtype": "F32", "shape": [3], "data_offsets": [HUGE, HUGE + 12]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with Path("net").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.seek(HUGE, os.SEEK_CUR)
        file.write(struct.pack("<3f", 0, 0, 0))


def huge_torch():
    with torch.serialization.skip_data():
        torch.save({"huge": torch.empty(HUGE, dtype=torch.uint8), "logits": torch.zeros(3)}, "net")


def growth(work):
    """By how many bytes ``work`` raised what the process holds in memory, mapped files included."""

    def held(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))

    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = held("VmRSS")
    work()
    return held("VmHWM") - before


@pytest.mark.parametrize("make", [huge_safetensors, huge_torch])
def test_what_is_not_asked_for_is_not_read_from_the_disk(here, make):
    make()

    def work():
        checkpoint = open_checkpoint("net")
        assert checkpoint.shapes == {"huge": (HUGE,), "logits": (3,)}
        assert checkpoint.read("logits").tolist() == [0, 0, 0]

    assert growth(work) < HUGE >> 5


def test_the_measure_of_these_tests_sees_what_is_read(here):
    Path("part").touch()
    os.truncate("part", HUGE >> 4)
    assert growth(lambda: Path("part").read_bytes()) > HUGE >> 5


# ---- what is refused


class Creates:
    """Pickled code that makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("made by pickled code",)


PICKLED = {
    "hyper-parameters of a class": (lambda: lightning(state(), hyper_parameters=argparse.Namespace(lr=1)), "Namespace"),
    "a whole module": (lambda: nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    "code that makes a folder": (lambda: lightning(state(), callbacks=[Creates()]), "posix.mkdir"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", PICKLED)
def test_pickled_code_is_named_and_not_run(run, here, kind, zipped):
    make, word = PICKLED[kind]
    torch.save(make(), "net.pt", _use_new_zipfile_serialization=zipped)
    code, out, err = run("import", "net.pt", *NET, "--all", "-o", "w.safetensors")
    assert (code, out) == (1, "")
    assert err.startswith("error: checkpoint net.pt: expected weights and plain values, got pickled code (")
    assert word in err
    assert "save its state_dict as safetensors" in err
    assert err.count("\n") == 1
    assert [path.name for path in here.iterdir()] == ["net.pt"]


def test_the_pickled_code_of_these_tests_would_make_a_folder(here):
    torch.save(Creates(), "net.pt")
    torch.load("net.pt", weights_only=False)
    assert Path("made by pickled code").exists()


def cut(save, keep):
    def write():
        save()
        data = Path("net").read_bytes()
        Path("net").write_bytes(data[: int(len(data) * keep)])

    return write


def repack(compression):
    torch.save(state(), "whole")
    with zipfile.ZipFile("whole") as whole, zipfile.ZipFile("net", "w", compression) as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))
    Path("whole").unlink()


def torchscript():
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "net")


def old():
    torch.save(state(), "net", _use_new_zipfile_serialization=False)


BAD = {
    "empty": (lambda: Path("net").touch(), "got an empty one"),
    "text": (
        lambda: Path("net").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "a Git LFS pointer, not the file itself",
    ),
    "a FIFO": (lambda: os.mkfifo("net"), "not a regular file"),
    "half a safetensors file": (cut(lambda: save_file(state(), "net"), 0.5), "got a damaged one"),
    "half a header": (lambda: Path("net").write_bytes(struct.pack("<Q", 99) + b'{"a":'), "got a damaged one"),
    "a huge header": (lambda: Path("net").write_bytes(struct.pack("<Q", MAX_HEADER + 1) + b"{}"), "of at most"),
    "half an archive": (cut(lambda: torch.save(state(), "net"), 0.9), "got a damaged archive"),
    "half a file of old": (cut(old, 0.9), "got a damaged one"),
    "the begin of a file of old": (cut(old, 0.0001), "got a damaged one"),
    "another archive": (lambda: zipfile.ZipFile("net", "w").writestr("a/b.txt", ""), "got another archive, of b.txt"),
    "a compressed archive": (lambda: repack(zipfile.ZIP_DEFLATED), "got a compressed one"),
    "a TorchScript program": (torchscript, "got a TorchScript program"),
    "a pickle of no torch": (
        lambda: Path("net").write_bytes(pickle.dumps({"a": 1})),
        "a pickle that is more than data",
    ),
    "a list": (lambda: torch.save([torch.ones(2)], "net"), "got list"),
    "no tensors": (lambda: torch.save({"epoch": 1, "model": {}}, "net"), "got epoch, model"),
    "another network": (lambda: save_file({"a.weight": torch.ones(2)}, "net"), "and none of them: a.weight"),
    "a name twice, compiled and not": (
        lambda: save_file({**state(), "blocks._orig_mod.0.register_pooling.compress.weight": torch.ones(2)}, "net"),
        "expected one tensor 'blocks.0.register_pooling.compress.weight', got ",
    ),
    "a weight twice, behind two wrappers": (
        lambda: torch.save({**state(), **lightning(state())["state_dict"]}, "net"),
        "mlp.0.weight' and 'network.blocks.2.",
    ),
    "not finite": (
        lambda: save_file(
            state(
                blocks__2__register_pooling__compress__weight=torch.tensor(
                    [1, float("nan"), float("inf"), 4] * 96
                ).view(C, D)
            ),
            "net",
        ),
        "'blocks.2.register_pooling.compress.weight': expected finite values, got 96 NaN and 96 infinite of 384",
    ),
    "two dtypes": (
        lambda: save_file(state(blocks__2__register_pooling__compress__weight=torch.ones(C, D).half()), "net"),
        "expected weights of one dtype, got float16 ('blocks.2.register_pooling.compress.weight') and float32 (",
    ),
    "another width": (
        lambda: save_file(state(blocks__2__register_pooling__compress__weight=torch.ones(C, D + 1)), "net"),
        "blocks.2.register_pooling.compress.weight: expected [c, D]",
    ),
    "a tensor larger than the file": (
        lambda: torch.save(
            state(blocks__2__register_pooling__compress__weight=torch.ones(1).expand(1 << 40, D)), "net"
        ),
        "blocks.2",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_in_one_line_and_nothing_is_written(run, here, kind):
    make, words = BAD[kind]
    make()
    code, out, err = run("import", "net", *NET, "--block", "2", "-o", "w.safetensors")
    assert (code, out) == (1, "")
    assert err.startswith("error: checkpoint net: ")
    assert words in err
    assert err.count("\n") == 1
    assert [path.name for path in here.iterdir()] == ["net"]


def test_the_repacked_archive_of_these_tests_is_read_when_nothing_in_it_is_compressed(here):
    repack(zipfile.ZIP_STORED)
    name = "blocks.2.register_pooling.compress.weight"
    assert torch.equal(open_checkpoint("net").read(name), state()[name])


def test_a_number_spread_over_any_shape_is_not_copied(here):
    torch.save({"a": torch.ones(1).expand(1 << 40)}, "net")
    with pytest.raises(regplug.BundleError, match=r"^checkpoint net: tensor 'a': expected at most \d+ bytes, got "):
        open_checkpoint("net").read("a")


def test_all_writes_nothing_when_one_block_is_bad(run, here):
    save_file(state(blocks__2__register_pooling__compress__weight=torch.full((C, D), float("nan"))), "net")
    assert run("import", "net", *NET, "--all", "-o", "w.safetensors")[0] == 1
    assert [path.name for path in here.iterdir()] == ["net"]


# ---- what was asked for


def test_the_caller_may_know_the_layout_better_than_names_and_shapes_tell(run, here):
    save_file(state(), "net")  # registers put first, as older networks could: the same names and shapes
    assert run("import", "net", *NET, "--block", "0", "--layout", "start=1", "-o", "w.safetensors")[0] == 0
    _, out, _ = run("info", "w.safetensors", "--json")
    assert json.loads(out)["layout"] == {**TokenLayout(R, D, start=1).as_dict(), "normalized": False}


WRONG = {
    "known: 0, 2": ["-o", "w"],
    "expected a block with a readout, got '1'": ["--block", "1", "-o", "w"],
    "--block, --all: expected one of them": ["--block", "0", "--all", "-o", "w"],
    "expected 'regplug:compress-concat', as names and shapes tell, got 'regplug:pool'": [
        *("--block", "0", "--strategy", "pool", "-o", "w")
    ],
    "strategy 'poool': not registered": ["--block", "0", "--strategy", "poool", "-o", "w"],
    "option 'compressed_dim': expected 8, as the shapes tell, got 9": [
        *("--block", "0", "-O", "compressed_dim=9", "-o", "w")
    ],
    "option 'eps': expected a known option": ["--block", "0", "-O", "eps=9", "-o", "w"],
    "layout: expected {'num_registers': ": ["--block", "0", "--layout", "num_registers=9", "-o", "w"],
    "exists and is kept": ["--block", "0", "-o", "there"],
    "file there.block-0: exists and is kept": ["--all", "-o", "there"],
    "expected another file than the checkpoint": ["--block", "0", "--force", "-o", "net"],
    "expected a file or nothing there": ["--block", "0", "--force", "-o", "link"],
}


@pytest.mark.parametrize("words", WRONG)
def test_what_contradicts_the_checkpoint_or_an_existing_file_is_a_usage_error(run, here, words):
    save_file(state(), "net")
    Path("there").write_text("kept")
    Path("there.block-0").write_text("kept")
    Path("link").symlink_to("there")
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    code, out, err = run("import", "net", *NET, *WRONG[words])
    assert (code, out) == (2, "")
    assert words in err
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


def test_what_agrees_with_the_checkpoint_may_be_said(run, here):
    save_file(state(), "net")
    more = ["--strategy", "regplug:compress-concat", "-O", f"compressed_dim={C}", "--layout", f"start={START}"]
    assert run("import", "net", *NET, "--block", "0", *more, "-o", "w")[0] == 0


def test_a_checkpoint_of_another_width_than_the_model_that_is_named_is_refused(run, here):
    save_file(
        {"neck.weight": torch.ones(2, 8), "norm_neck.weight": torch.ones(24), "cls_token": torch.ones(1, 12, 8)}, "net"
    )
    code, _, err = run("import", "net", "--backbone", "mamba-reg:tiny", "-o", "w")
    assert code == 2
    assert "hidden_dim: expected 192, as the model has, got 8 by the shapes." in err


def test_a_file_is_replaced_with_force_and_only_by_a_whole_one(run, here):
    save_file(state(), "net")
    Path("w").write_text("old")
    assert run("import", "net", *NET, "--block", "0", "--strategy", "pool", "--force", "-o", "w")[0] == 2
    assert Path("w").read_text() == "old"
    assert run("import", "net", *NET, "--block", "0", "--force", "-o", "w")[0] == 0
    assert len(load_file("w")) == 5
    assert sorted(path.name for path in here.iterdir()) == ["net", "w"]


def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left(run, here):
    save_file(state(), "net")
    code, out, err = run("import", "net", *NET, "--all", "-o", "net/w")
    assert (code, out) == (1, "")
    assert err.startswith("error: file net/w.block-0: cannot be written: ")
    assert [path.name for path in here.iterdir()] == ["net"]


def test_names_of_a_stranger_stay_on_one_line(run, here):
    save_file({"a\n\x1b[31mb": torch.ones(2)}, "net")
    code, _, err = run("import", "net", *NET, "-o", "w")
    assert (code, err.count("\n"), "\x1b" in err) == (1, 1, False)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (lambda shapes: shapes["nowhere"], "expected weights to answer, got KeyError"),
        (lambda shapes: None, "expected a sequence of CheckpointSite, got None"),
        (lambda shapes: [site(readout={"logits": "nowhere"})], "expected names of the checkpoint, got nowhere"),
        (lambda shapes: [site(where="../0")], "expected a different block for each site, got '../0'"),
        (lambda shapes: [site(), site()], "expected a different block for each site, got '0'"),
    ],
)
def test_a_backbone_that_finds_nothing_or_nonsense_is_named(run, here, acme, weights, words):
    acme(weights)
    save_file(POOL, "net")
    code, _, err = run("import", "net", "--backbone", "acme-net", "-o", "w")
    assert code == 3
    assert err.startswith("error: backbone 'acme-net': ")
    assert words in err


def test_weights_that_are_not_all_of_the_readout_are_refused(run, here, acme):
    acme(lambda shapes: [site(strategy="mamba-reg", options={"ratio": 2}, readout={"neck.weight": "pool.logits"})])
    save_file(POOL, "net")
    code, _, err = run("import", "net", "--backbone", "acme-net", "-o", "w")
    assert code == 1
    assert "block 0: expected tensors [neck.weight, norm_neck.weight], got [neck.weight]." in err


# ---- the names


PARTS = st.sampled_from(["blocks", "0", "weight", "model", "norm"])
OWN = st.lists(PARTS, min_size=1, max_size=4).map(".".join).map(lambda name: f"own.{name}")


@given(
    st.sets(OWN, min_size=1, max_size=6),
    st.lists(st.sampled_from(["module.", "network.", "model."]), max_size=4).map("".join),
    st.data(),
)
def test_wrappers_and_compiled_segments_come_off_and_nothing_else_does(names, prefix, data):
    def compiled(name):
        parts = f"{prefix}{name}".split(".")
        at = data.draw(st.integers(0, len(parts) - 1))
        return ".".join([*parts[:at], "_orig_mod", *parts[at:]])

    stored = {compiled(name) if data.draw(st.booleans()) else prefix + name: name for name in sorted(names)}
    found = own_names("checkpoint", stored)
    assert {bare: stored[name] for bare, name in found.items()} == {prefix + name: name for name in names}
    assert [*wrapper_prefixes(found)][-1] == prefix
    assert {unwrapped(bare) for bare in found} == names


# ---- export from a weights file that says what it is


def test_export_takes_what_the_weights_file_says_and_refuses_what_contradicts_it(run, here):
    save_file(state(), "net")
    assert run("import", "net", *NET, "--block", "0", "-o", "w.safetensors")[0] == 0
    weights = ["--weights", "w.safetensors", "--no-programs", "-o", "b"]
    for more, words in (
        (["pool"], "strategy: expected 'regplug:pool', got 'regplug:compress-concat', as the file says of itself"),
        (["-O", "compressed_dim=9"], "options: expected {'compressed_dim': 9}, got {'compressed_dim': 8}"),
        (["--layout", "start=2"], "layout: expected {"),
        (["--film", "num_film_layers=3"], "film: expected {"),
    ):
        code, _, err = run("export", *more, *weights)
        assert code == 1
        assert words in err
        assert not Path("b").exists()
    agreeing = [
        "compress-concat",
        "-O",
        f"compressed_dim={C}",
        "--layout",
        f"start={START}",
        "--film",
        "num_film_layers=2",
    ]
    assert run("export", *agreeing, *weights)[0] == 0


def test_export_of_weights_that_say_nothing_wants_strategy_and_sizes(run, here):
    Path("w").write_bytes(save_tensors({"logits": torch.zeros(3)}))
    code, _, err = run("export", "--weights", "w", "-o", "b")
    assert code == 2
    assert "strategy: expected a name, got none." in err


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"strategy": "regplug:pool"}, "holds: expected a value, got nothing"),
        ({"num_registers": -3}, "num_registers: expected an integer >= 1, got -3"),
        ({"holds": "conditioner"}, "expected film and layout of a conditioner"),
        ({"layout": {"start": 0, "num_registers": 3}}, "layout.hidden_dim: expected a value, got nothing"),
        ({"backbone": {"name": "a:b", "model": None, "options": {}, "normalized": True}}, "got one behind 'a:b'"),
    ],
)
def test_a_weights_file_that_says_nonsense_of_itself_is_refused(run, here, said, words):
    whole = {"holds": "readout", "strategy": "regplug:pool", "num_registers": 3, "hidden_dim": 6, "options": {}}
    values = said if "strategy" in said else {**whole, "film": None, "layout": None, **said}
    Path("w").write_bytes(save_tensors({"logits": torch.zeros(3)}, values))
    code, _, err = run("export", "--weights", "w", "-o", "b")
    assert code == 1
    assert err.startswith("error: weights w: ")
    assert words in err
