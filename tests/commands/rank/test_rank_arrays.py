"""Files of arrays: ``.npz`` and safetensors."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from regplug import SpecError
from regplug.commands.rank.reading.data import open_source

N = 10
DRAW = np.random.default_rng(0)
TOKENS = DRAW.random((N, 7, 6), dtype=np.float32)
LABELS = np.arange(N) % 2


def write(path, **arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file({name: torch.from_numpy(one.copy()) for name, one in arrays.items()}, path)
    return path


def read(source, start=0, size=4):
    batches = list(source.batches(start, size))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@pytest.fixture(params=["t.npz", "t.safetensors"])
def path(request, tmp_path):
    return tmp_path / request.param


@pytest.mark.parametrize("start", [0, 3, 9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_rows_come_in_order_from_any_start_as_float32(path, start, dtype):
    source = open_source(write(path, tokens=TOKENS.astype(dtype), labels=LABELS))
    assert (len(source), source.content, np.asarray(source.labels).tolist()) == (N, "tokens", LABELS.tolist())
    found = read(source, start)["tokens"]
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.from_numpy(TOKENS.astype(dtype).astype(np.float32))[start:])


def test_registers_bring_class_tokens_and_patches_along(path):
    given = {"registers": TOKENS, "cls": TOKENS[:, 0], "patches": TOKENS[:, 1], "label": LABELS, "who": LABELS}
    source = open_source(write(path, **given), groups="who")
    found = read(source)
    assert set(found) == {"registers", "cls", "patches"}
    assert torch.equal(found["patches"], torch.from_numpy(TOKENS[:, 1]))
    assert np.asarray(source.groups).tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"tokens": TOKENS}, "labels: expected 'labels' or 'label', got tokens; name it with --labels"),
        ({"labels": LABELS}, r"expected one of the arrays images, tokens and registers, got none of them \(labels\)"),
        ({"labels": LABELS, "tokens": TOKENS, "registers": TOKENS}, "got tokens and registers"),
        ({"labels": LABELS, "tokens": TOKENS[0]}, r"tokens: expected \[n, T, D\], got \[7, 6\]"),
        ({"labels": LABELS[:4], "tokens": TOKENS}, r"labels: expected 10 samples, as tokens, got \[4\]"),
        ({"labels": LABELS, "registers": TOKENS, "cls": TOKENS[:, 0, :5]}, r"cls: expected \[n, 6\], as registers"),
        (
            {"labels": LABELS, "images": LABELS.reshape(N, 1)},
            "images: expected floats, got .*int64; scale and normalise",
        ),
        ({"labels": LABELS, "tokens": TOKENS[:, :0]}, r"tokens: expected \[n, T, D\], got \[10, 0, 6\]"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused_in_one_line(path, arrays, said):
    with pytest.raises(SpecError, match=said) as caught:
        open_source(write(path, **arrays))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_refused(path):
    write(path, tokens=TOKENS, labels=LABELS)
    data = path.read_bytes()
    for wrong in (b"", data[:-30], data[:50]):
        path.write_bytes(wrong)
        with pytest.raises(SpecError, match=r"^data .*: expected a"):
            open_source(path)


def test_damage_in_the_rows_is_noticed(tmp_path):
    path = tmp_path / "t.npz"
    np.savez_compressed(path, labels=LABELS, tokens=TOKENS)
    data = bytearray(path.read_bytes())
    place = data.index(b"tokens.npy") + 600
    data[place : place + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(SpecError, match="expected a file of numpy.savez, got"):
        read(open_source(path))


def test_compressed_arrays_texts_and_big_endian_numbers_are_read(tmp_path):
    path = tmp_path / "t.npz"
    np.savez_compressed(path, tokens=TOKENS.astype(">f4"), labels=np.array(["a", "b"] * 5))
    source = open_source(path)
    assert source.labels.tolist() == ["a", "b"] * 5
    assert torch.equal(read(source, 5, 2)["tokens"], torch.from_numpy(TOKENS[5:]))
    np.savez(path, tokens=TOKENS, labels=np.array([b"a", b"b"] * 5))
    assert open_source(path).labels.tolist() == ["a", "b"] * 5


def test_objects_are_refused_by_name_and_not_unpickled(tmp_path):
    path = tmp_path / "t.npz"

    class Evil:
        def __reduce__(self):
            return (print, ("unpickled",))

    np.savez(path, tokens=TOKENS, labels=np.array([Evil()] * N, dtype=object))
    with pytest.raises(
        SpecError, match="labels: expected numbers or texts, got Python objects, which are not unpickle"
    ):
        open_source(path)
    np.savez(path, tokens=TOKENS, labels=LABELS, other=np.array([Evil()], dtype=object))
    assert len(open_source(path)) == N  # what is not read does not matter


def test_columns_first_and_wrong_sizes_are_refused(tmp_path):
    path = tmp_path / "t.npz"
    np.savez(path, tokens=np.asfortranarray(TOKENS), labels=LABELS)
    with pytest.raises(SpecError, match=r"got Fortran's order; save numpy\.ascontiguousarray\(tokens\)"):
        open_source(path)
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("tokens.npy", "w") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 7, 6)}
            )
        with archive.open("labels.npy", "w") as file:
            np.lib.format.write_array(file, LABELS)
    with pytest.raises(SpecError, match=r"tokens: expected \d+ bytes for float32 \[1099511627776, 7, 6\], got 0"):
        open_source(path)


@pytest.mark.slow
def test_a_huge_compressed_array_is_read_without_holding_it(tmp_path):
    path = tmp_path / "t.npz"
    count, row = 600, (16, 8192)  # 315 MB of zeros, 0.3 MB in the file
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("tokens.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, *row)}
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(count):
                file.write(bytes(4 * row[0] * row[1]))
        with archive.open("labels.npy", "w") as file:
            np.lib.format.write_array(file, np.arange(count) % 2)
    code = f"""
import resource
from regplug.commands.rank.reading.data import open_source
source = open_source({str(path)!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for batch in source.batches(0, 8):
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60_000  # kB
