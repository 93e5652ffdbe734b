"""The largest files that are read; and the judge detects too much memory, time or text."""

import os
import resource

import pytest
import torch

import regplug
from regplug.errors import BundleError
from regplug.format.folder import read_folder
from regplug.format.read_bundle import check_bundle
from regplug.format.safetensors_header import read_file
from regplug.format.weights import load_tensors, save_tensors
from torture.large import GRAIN, figure, run
from torture.options import Outcome, memory


@pytest.mark.torture
def test_large_files_take_little_memory_and_are_refused_in_one_line(tmp_path):
    found = run(tmp_path, 1.0, 0, lambda word: None)
    assert [one.tried > 1 for one in found] == [True] * 4
    # not their seconds, because the machine may be busy
    bad = {one.what: {word: count for word, count in one.bad.items() if count and word != "over 1 s"} for one in found}
    assert {what: counts for what, counts in bad.items() if counts} == {}


@pytest.mark.parametrize(
    ("outcome", "seen"),
    [
        (Outcome("read", 0, 1.1), "over 1 s"),
        (Outcome("read", GRAIN + 1, 0.1), f"over {GRAIN >> 20} MiB"),
        (Outcome("bundle DIR: " + "x" * 400, 0, 0.1), "untidy refusals"),
        (Outcome("weights F: \x1b", 0, 0.1), "untidy refusals"),
    ],
)
def test_the_judge_detects_each_thing_that_must_not_happen(outcome, seen):
    assert {word: count for word, count in figure("x", [outcome]).bad.items() if count} == {seen: 1}
    assert figure("x", [Outcome("read", GRAIN, 0.9)]).ok


@pytest.mark.torture
def test_a_file_over_two_gibibytes_takes_memory_of_its_size_once(tmp_path):
    """One system call reads at most 2 GiB; joining the results of two calls took the size twice."""
    size = (2 << 30) + (64 << 20)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + size + (256 << 20), hard))
    try:
        assert len(read_folder(tmp_path, False, lambda folder: folder.read("large", at_most=size))) == size
        with pytest.raises(BundleError, match="sha256 differs"):
            read_folder(tmp_path, False, lambda folder: folder.read_tensors("large", size, "0" * 64))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("padding", range(9))
def test_tensors_share_the_bytes_of_the_file_wherever_they_begin(padding):
    state = {name: torch.randn(3, 2).to(getattr(torch, name)) for name in ("float64", "float32", "bfloat16")}
    state |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "flags": torch.tensor([True, False, True])}
    data = save_tensors(state)
    length = int.from_bytes(data[:8], "little")
    moved = (length + padding).to_bytes(8, "little") + data[8 : 8 + length] + b" " * padding + data[8 + length :]
    shared = bytearray(moved)
    found = load_tensors("file", shared)
    assert list(found) == sorted(state)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
        assert tensor.data_ptr() % tensor.itemsize == 0
    shared[-1] ^= 1  # the flags, which are last and need no alignment
    assert not found["flags"].equal(state["flags"])
    assert load_tensors("file", moved)["flags"].equal(state["flags"])


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(save_tensors({"a": torch.ones(1000)}))
    pread = os.pread

    def shrinking(descriptor, count, place):
        path.write_bytes(path.read_bytes()[:20])
        return pread(descriptor, count, place)

    monkeypatch.setattr(os, "pread", shrinking)
    with pytest.raises(BundleError, match=r"expected [0-9]+ bytes, got [0-9]+; it changed while it was read"):
        read_file("weights F", str(path))


def test_a_bundle_that_is_only_described_keeps_no_file_in_memory(tmp_path):
    spec = regplug.resolve("mean", num_registers=4, hidden_dim=24)
    regplug.export(spec, spec.build(), tmp_path / "b")
    files = check_bundle(tmp_path / "b")
    assert (files.files, files.tensors) == ({}, {})
    assert files.digest == regplug.verify(tmp_path / "b").digest
    data = (tmp_path / "b" / "golden.safetensors").read_bytes()
    (tmp_path / "b" / "golden.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"golden.safetensors: sha256 differs"):
        check_bundle(tmp_path / "b")
