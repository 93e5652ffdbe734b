"""A checkpoint is read in parts, by its descriptor: right numbers or an error, even if the file changes."""

import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import regplug
from regplug.commands.import_checkpoint.checkpoint import open_checkpoint

BASE = torch.arange(60.0).reshape(5, 12)
STATE = {
    "whole": BASE,
    "strided": BASE.t(),
    "slice": BASE[1:4, 2:9:3],
    "tied": BASE[2],
    "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
    "scalar": torch.tensor(7.0),
    "empty": torch.empty(0, 4),
    "parameter": torch.nn.Parameter(torch.randn(3)),
    "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
    "negated": torch.randn(3, dtype=torch.complex64).conj().imag,
    **{
        str(dtype): torch.tensor([0, 1, 1]).to(dtype)
        for dtype in (
            *(torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.complex128),
            *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool),
        )
    },
}
KINDS = {"safetensors": lambda state: save_file(state, "net"), "torch": lambda state: torch.save(state, "net")}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def check_all(wanted):
    checkpoint = open_checkpoint("net")
    assert set(checkpoint.shapes) == set(wanted)
    for name, tensor in wanted.items():
        got = checkpoint.read(name)
        assert checkpoint.shapes[name] == got.shape == tensor.shape
        assert got.dtype == tensor.dtype
        assert got.is_contiguous()
        assert not got.is_neg()
        assert not got.is_conj()
        assert bits(got) == bits(tensor)


def bits(tensor):
    return bytes(tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("zipped", [True, False])
def test_every_tensor_has_the_numbers_that_torch_loads(zipped):
    newer = () if zipped else ("torch.float8_e5m2", "torch.uint16")  # the older format has no name for these
    state = {name: tensor for name, tensor in STATE.items() if name not in newer}
    torch.save(state, "net", _use_new_zipfile_serialization=zipped)
    check_all(torch.load("net", weights_only=True))


def test_tensors_of_safetensors_have_the_numbers_that_were_saved():
    kept = {name: tensor.detach().clone() for name, tensor in STATE.items() if name not in ("conjugated", "negated")}
    kept = {name: tensor.contiguous() for name, tensor in kept.items() if tensor.dtype != torch.complex128}
    save_file(kept, "net")
    check_all(kept)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_only_plain_tensors_are_read():
    others = {
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(3, device="meta"),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "number": 3,
    }
    torch.save({**others, "a": BASE}, "net")
    check_all({"a": BASE})


def repacked(change=lambda name, data: data, order=lambda names: names):
    """The archive written again by another program: other paddings, another order."""
    with zipfile.ZipFile("net") as archive:
        members = {name: archive.read(name) for name in order(archive.namelist())}
    with zipfile.ZipFile("net", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))


def test_an_archive_in_another_order_than_torchs_own_gives_the_same_numbers():
    torch.save(STATE, "net")
    wanted = torch.load("net", weights_only=True)
    repacked(order=lambda names: [*[name for name in names if "/data/" not in name], *reversed(names)])
    check_all(wanted)


def test_numbers_of_a_machine_with_the_other_byte_order_are_read_as_torch_reads_them():
    state = {"a": torch.randn(3, 4), "b": torch.tensor([1, 2], dtype=torch.int16)}
    torch.save(state, "net")
    sizes = {48: 4, 4: 2}

    def turned(name, data):
        if "/data/" in name:
            size = sizes[len(data)]
            return b"".join(data[at : at + size][::-1] for at in range(0, len(data), size))
        return b"big" if name.endswith("/byteorder") else data

    repacked(turned)
    assert torch.equal(torch.load("net", weights_only=True)["a"], state["a"])
    check_all(state)


def test_a_file_without_check_sums_is_read():
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": BASE}, "net")
    finally:
        torch.serialization.set_crc32_options(before)
    check_all({"a": BASE})


def test_a_storage_that_is_longer_than_its_member_is_refused():
    torch.save({"a": BASE}, "net")
    repacked(lambda name, data: data[:-4] if name.endswith("/data/0") else data)
    with pytest.raises(regplug.BundleError, match=r"damaged archive \(a storage of 240 bytes in a member of 236\)"):
        open_checkpoint("net")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused():
    torch.save({"a": BASE}, "net")
    with zipfile.ZipFile("net", "a") as archive:
        archive.writestr("net/data/0", bytes(240))
    with pytest.raises(regplug.BundleError, match=r"damaged archive \(two members of one name\)"):
        open_checkpoint("net")


def by_another_process(code):
    subprocess.run([sys.executable, "-c", f"import os\n{code}"], check=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        "os.truncate('net', 0)",
        "os.truncate('net', os.path.getsize('net') // 2)",
        "data = open('net', 'rb').read(); open('net', 'wb').write(data)",
    ],
)
def test_a_file_that_is_cut_or_written_again_after_it_was_opened_is_refused(kind, change):
    KINDS[kind]({"a": torch.randn(1000, 1000)})
    checkpoint = open_checkpoint("net")
    by_another_process(change)
    with pytest.raises(regplug.BundleError) as error:
        checkpoint.read("a")
    assert str(error.value) == "checkpoint net: changed while it was read; try again when nothing writes it."


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_replaced_gives_the_old_numbers(kind):
    KINDS[kind]({"a": BASE})
    checkpoint = open_checkpoint("net")
    Path("net").rename("before")
    KINDS[kind]({"a": BASE + 1})
    Path("before").unlink()
    assert torch.equal(checkpoint.read("a"), BASE)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_mapped_and_the_descriptor_ends_with_the_checkpoint(kind):
    KINDS[kind]({"a": BASE})
    checkpoint = open_checkpoint("net")
    checkpoint.read("a")
    place = str(Path("net").resolve())

    def held():
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(str(link.readlink()) == place for link in links)

    assert place not in Path("/proc/self/maps").read_text()
    assert held() == 1
    del checkpoint
    assert held() == 0


def entry(begin=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


DAMAGED = {
    "a hole": {"a": entry(0, 8), "b": entry(12, 20)},
    "an overlap": {"a": entry(0, 8), "b": entry(4, 12)},
    "too few bytes": {"a": entry(0, 4)},
    "an end before its begin": {"a": entry(8, 0)},
    "a negative size": {"a": entry(shape=(-2,))},
    "a size that is true": {"a": entry(0, 4, shape=(True,))},
    "a size of 1e400 next to a 0": {"a": entry(0, 0, shape=(0, 10**400)), "b": entry()},
    "more than the file": {"a": entry(0, 1 << 60, shape=(1 << 58,))},
    "fewer than the file": {"a": entry(0, 4, shape=(1,))},
    "a number for a dtype": {"a": {**entry(), "dtype": 1}},
    "another field": {"a": {**entry(), "more": 1}},
    "a list": [entry()],
    "no object": {"a": 1},
}


def write_safetensors(text, data=bytes(8)):
    Path("net").write_bytes(struct.pack("<Q", len(text)) + text + data)


GOT_DAMAGED = r"^checkpoint net: expected a safetensors file, got a damaged one \("


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_header_that_contradicts_the_file_is_refused(kind):
    text = json.dumps(DAMAGED[kind]).encode()
    write_safetensors(text if text.startswith(b"{") else b"{" + text)
    with pytest.raises(regplug.BundleError, match=GOT_DAMAGED):
        open_checkpoint("net")


@pytest.mark.parametrize("text", [b'{"a":' * 100_000, b'{"a":1' + b"0" * 10_000, b'{"a":1,"a":1}', b'{"\xff":1}', b"{"])
def test_a_header_that_is_no_json_is_refused(text):
    write_safetensors(text)
    with pytest.raises(regplug.BundleError, match=r"damaged one \(a header that is no JSON in UTF-8\)"):
        open_checkpoint("net")


def test_a_tensor_of_a_dtype_that_torch_has_not_is_refused_when_it_is_asked_for():
    write_safetensors(json.dumps({"a": entry(0, 8), "b": entry(8, 12, (8,), "F4")}).encode(), bytes(12))
    checkpoint = open_checkpoint("net")
    assert checkpoint.shapes == {"a": (2,), "b": (8,)}
    assert checkpoint.read("a").tolist() == [0, 0]
    with pytest.raises(regplug.BundleError, match="tensor 'b': expected a dtype that torch has, got another"):
        checkpoint.read("b")


def test_a_tensor_of_more_than_one_read_is_read_whole(monkeypatch):
    monkeypatch.setattr("regplug.commands.import_checkpoint.checkpoint_file.PART", 7)
    save_file({"a": BASE}, "net")
    check_all({"a": BASE})
