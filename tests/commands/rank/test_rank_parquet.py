"""Parquet files: images as Hugging Face stores them, and tokens as lists."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import regplug
from regplug import SpecError
from regplug.commands.rank.reading.data import open_source
from regplug.commands.rank.reading.pictures import decode

N = 10
TOKENS = np.random.default_rng(0).random((N, 3, 4), dtype=np.float32)
LABELS = pa.array([number % 2 for number in range(N)])


def write(path, row_group_size=4, metadata=None, **columns):
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group_size)
    return path


def lists(kind):
    flat = pa.array(TOKENS.ravel())
    if kind == "lists of lists":
        return pa.array(TOKENS.tolist(), type=pa.list_(pa.list_(pa.float32())))
    if kind == "large lists of fixed lists":
        return pa.array(TOKENS.tolist(), type=pa.large_list(pa.list_(pa.float64(), 4)))
    if kind == "fixed lists":
        return pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(flat, 4), 3)
    return pa.FixedShapeTensorArray.from_numpy_ndarray(TOKENS)


@pytest.mark.parametrize("kind", ["lists of lists", "large lists of fixed lists", "fixed lists", "tensors"])
@pytest.mark.parametrize(("start", "size"), [(0, 3), (5, 2), (9, 100)])
def test_tokens_are_read_from_lists_and_tensors_from_any_start(tmp_path, kind, start, size):
    source = open_source(write(tmp_path / "t.parquet", tokens=lists(kind), label=LABELS))
    assert (len(source), source.content, source.kind) == (N, "tokens", "Parquet")
    batches = [batch["tokens"] for batch in source.batches(start, size)]
    assert max(map(len, batches)) <= size
    assert torch.allclose(torch.cat(batches), torch.from_numpy(TOKENS)[start:])
    assert torch.cat(batches).dtype == torch.float32


def test_files_of_a_folder_follow_each_other(tmp_path):
    for number in (1, 0):
        part = lists("fixed lists").slice(5 * number, 5)
        write(tmp_path / f"train-{number}.parquet", 2, tokens=part, label=LABELS.slice(5 * number, 5))
    source = open_source(tmp_path)
    assert source.labels.tolist() == LABELS.to_pylist()
    found = torch.cat([batch["tokens"] for batch in source.batches(4, 3)])
    assert torch.equal(found, torch.from_numpy(TOKENS)[4:])
    write(tmp_path / "z.parquet", tokens=lists("fixed lists"), other=LABELS)
    with pytest.raises(SpecError, match=r"z\.parquet: expected the columns of train-0\.parquet \(tokens, label\), got"):
        open_source(tmp_path)


def png(number, side=5):
    found = io.BytesIO()
    Image.new("RGB", (side, side), (number, 0, 0)).save(found, "PNG")
    return found.getvalue()


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_images_are_decoded_from_bytes_and_a_broken_one_is_named(tmp_path, kind):
    files = [png(number) for number in range(N - 1)] + [b"broken"]
    column = pa.array([{"bytes": one, "path": f"{number}.png"} for number, one in enumerate(files)])
    source = open_source(write(tmp_path / "t.parquet", image=column if kind == "struct" else files, label=LABELS))
    pictures = [one for batch in source.batches(2, 3) for one in batch]
    assert decode(pictures[0]).getpixel((0, 0)) == (2, 0, 0)
    where = r"row 9 \(9\.png\)" if kind == "struct" else "row 9"
    with pytest.raises(SpecError, match=rf"^data .*: {where}: expected an image that Pillow reads, got"):
        decode(pictures[-1])


def test_an_image_may_be_a_file_next_to_the_table_but_not_nothing(tmp_path):
    (tmp_path / "a.png").write_bytes(png(7))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = pa.array([{"bytes": None, "path": "a.png"}, {"bytes": None, "path": None}], type=kind)
    source = open_source(write(tmp_path / "t.parquet", image=rows, label=LABELS.slice(0, 2)))
    batches = source.batches(0, 1)
    assert decode(next(batches)[0]).getpixel((0, 0)) == (7, 0, 0)
    with pytest.raises(SpecError, match="row 1: expected an image, got none"):
        next(batches)


def test_labels_may_be_texts_and_missing_ones_are_seen(tmp_path):
    words = pa.array(["a", None] * 5).dictionary_encode()
    source = open_source(write(tmp_path / "t.parquet", tokens=lists("tensors"), what=words, who=LABELS), "what", "who")
    assert source.labels == ["a", None] * 5
    assert source.groups.tolist() == LABELS.to_pylist()


@pytest.mark.parametrize(
    "values", [[True, False] * 5, [0.5, 1.5] * 5, ["a", "b"] * 5, [[0.5, 1.0]] * 10, pa.array([1, 2] * 5, pa.int8())]
)
def test_labels_may_be_of_any_plain_type(tmp_path, values):
    source = open_source(write(tmp_path / "t.parquet", tokens=lists("tensors"), label=pa.array(values)))
    wanted = values.to_pylist() if isinstance(values, pa.Array) else values
    assert list(source.labels) == wanted


def test_class_names_of_hugging_face_are_used(tmp_path):
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    source = open_source(write(tmp_path / "t.parquet", metadata=metadata, tokens=lists("tensors"), label=LABELS))
    assert source.names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"tokens": TOKENS.tolist()}, "labels: expected 'labels' or 'label', got tokens"),
        ({"label": LABELS}, "expected one of the columns registers, tokens, image, images, img, got label"),
        (
            {"label": LABELS, "image": LABELS},
            "column 'image': expected files, as binary or struct<bytes, path>, got",
        ),
        ({"label": LABELS, "tokens": TOKENS.tolist(), "image": [b""] * N}, "got tokens and image"),
    ],
)
def test_wrong_columns_are_refused_in_one_line(tmp_path, columns, said):
    with pytest.raises(SpecError, match=said):
        open_source(write(tmp_path / "t.parquet", **columns))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[[1.0, 2.0]]] * 9 + [[[1.0]]], "row 9: expected 2 values, as the rows before it, got 1"),
        ([[[1.0, 2.0]]] * 9 + [[[1.0, 2.0]] * 2], "row 9: expected 1 values, as the rows before it, got 2"),
        ([[[1.0, 2.0]]] * 9 + [None], "expected numbers in every row, got none"),
        ([[[1.0, None]]] * 10, "expected lists of floats, got 10 nulls from row 0 on"),
        ([[[1, 2]]] * 10, "expected lists of floats, got list<"),
        ([1.5] * 10, "expected lists of floats, got double"),
    ],
)
def test_wrong_rows_are_named(tmp_path, rows, said):
    source = open_source(write(tmp_path / "t.parquet", 10, tokens=pa.array(rows), label=LABELS))
    with pytest.raises(SpecError, match=said):
        list(source.batches(0, N))


def test_a_damaged_file_is_refused(tmp_path):
    path = write(tmp_path / "t.parquet", tokens=lists("tensors"), label=LABELS)
    data = path.read_bytes()
    for wrong in (b"", data[:100], b"no Parquet"):
        path.write_bytes(wrong)
        with pytest.raises(SpecError, match=r"t\.parquet: expected a Parquet file, got"):
            open_source(path)


def test_without_pyarrow_one_line_says_how_to_install_it(tmp_path, run_python):
    path = write(tmp_path / "t.parquet", tokens=lists("tensors"), label=LABELS)
    done = run_python(
        "import sys; sys.modules['pyarrow'] = None\nfrom regplug.commands.rank.reading.data import open_source\n"
        f"try: open_source({str(path)!r})\nexcept Exception as error: print(error)",
        [Path(regplug.__file__).parents[1]],
    )
    assert "use pip install 'regplug[parquet]'." in done.stdout, done.stderr
