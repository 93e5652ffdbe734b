"""Folders of images: which files are samples, in which order, and what is wrong with a folder."""

from __future__ import annotations

import os

import pytest
import torchvision
from PIL import Image
from support.picture_backbone import write_images

from regplug import SpecError
from regplug.commands.rank.reading.data import open_source
from regplug.commands.rank.reading.pictures import decode


def save(path, colour=(1, 2, 3), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 3), colour).save(path)


def names(source):
    return [str(one.relative_to(source.path)) for one in source.files]


def test_files_classes_and_their_order_are_those_of_torchvision(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "b/deep/0.webp", "b/deep/9.png", "b/c.png", "a/x.bmp", "a/y.ppm"):
        save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    source = open_source(tmp_path)
    theirs = torchvision.datasets.ImageFolder(tmp_path)
    assert [(str(path), label) for path, label in zip(source.files, source.labels, strict=True)] == [
        (path, theirs.classes[label]) for path, label in theirs.samples
    ]
    nothing = {"count": 0, "first": []}
    assert source.facts == {"empty_folders": nothing, "unlabelled_images": nothing, "other_files": 1}


def test_hidden_files_and_folders_and_empty_folders_are_passed_over(tmp_path):
    for name in ("a/1.png", "b/1.png", "a/._1.png", ".hidden/1.png", "a/.ipynb_checkpoints/1.png"):
        save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    source = open_source(tmp_path)
    assert names(source) == ["a/1.png", "b/1.png"]
    assert source.facts["empty_folders"] == {"count": 1, "first": ["empty"]}


def test_folders_without_images_and_images_without_a_label_are_counted_with_the_first_names(tmp_path):
    for name in ("a/1.png", "b/1.png", "loose.png", ".hidden.png"):
        save(tmp_path / name)
    for number in range(7):
        (tmp_path / f"empty-{number}").mkdir()
    facts = open_source(tmp_path).facts
    assert facts["empty_folders"] == {"count": 7, "first": [f"empty-{number}" for number in range(5)]}
    assert facts["unlabelled_images"] == {"count": 1, "first": ["loose.png"]}
    (tmp_path / "labels.csv").write_text("file_name,label\n./a/1.png,x\n")
    assert open_source(tmp_path).facts == {"unlabelled_images": {"count": 2, "first": ["loose.png", "b/1.png"]}}


def test_links_that_form_a_loop_end_and_links_to_folders_are_followed(tmp_path):
    save(tmp_path / "outside" / "3.png")
    save(tmp_path / "data" / "a" / "1.png")
    save(tmp_path / "data" / "b" / "2.png")
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path / "data" / "a")
    (tmp_path / "data" / "a" / "more").symlink_to(tmp_path / "outside")
    (tmp_path / "data" / "b" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    assert names(open_source(tmp_path / "data")) == ["a/1.png", "a/more/3.png", "b/2.png"]


@pytest.mark.parametrize("table", ["labels.csv", "metadata.csv"])
def test_a_table_names_images_labels_and_groups_in_its_own_order(tmp_path, table):
    for name in ("2.png", "sub/1.png", "not-listed.png"):
        save(tmp_path / name)
    (tmp_path / table).write_text("file_name,age,who\nsub/1.png,2.5,x\n2.png,3,y\n", encoding="utf-8-sig")
    source = open_source(tmp_path, "age", "who")
    assert names(source) == ["sub/1.png", "2.png"]
    assert (source.labels, source.groups) == ([2.5, 3.0], ["x", "y"])
    with pytest.raises(SpecError, match=r"labels: expected 'label' or 'labels', got file_name, age, who; name it with"):
        open_source(tmp_path)


def test_a_single_other_column_has_the_labels_and_an_empty_one_is_missing(tmp_path):
    save(tmp_path / "1.png")
    save(tmp_path / "2.png")
    (tmp_path / "labels.csv").write_text("file_name,what\n1.png,7\n2.png,\n")
    assert open_source(tmp_path).labels == ["7", None]


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["7", "-1", "0"], [7, -1, 0]),
        (["7", "-1.5", "1e3"], [7.0, -1.5, 1000.0]),
        (["007", "7", "1"], ["007", "7", "1"]),
        (["1_000", "2", "3"], ["1_000", "2", "3"]),
        (["yes", "2", "3"], ["yes", "2", "3"]),
    ],
)
def test_the_texts_of_a_table_are_numbers_only_if_all_are_written_as_numbers(tmp_path, texts, labels):
    rows = []
    for number, text in enumerate(texts):
        save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{text}")
    (tmp_path / "labels.csv").write_text("\n".join(["file_name,label", *rows]))
    assert open_source(tmp_path).labels == labels


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,label\n1.png,2\n", "expected 'file_name', got name, label"),
        ("file_name,label\n", "expected a row for each image, got none"),
        ("file_name,label\n3.png,2\n", r"expected each file_name to be a file, got none for 3\.png"),
        ("file_name,label\n../1.png,2\n", r"row 0: expected a file inside the folder, got '\.\./1\.png'"),
        ("file_name,label\n/etc/1.png,2\n", "row 0: expected a file inside the folder"),
        ("file_name,label\n1.png,2\n1.png,3\n", r"expected each image once, got '1\.png' 2 times"),
        ("file_name,label\n1.png\n", "row 0: expected 2 values, got another number of them"),
        ("file_name,label\n1.png,2,3\n", "row 0: expected 2 values, got another number of them"),
        ('file_name,label\n1.png,"2\n', "expected a CSV file in UTF-8, got"),
        (b"file_name,label\n1.png,\xff\n", "expected a CSV file in UTF-8, got"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(tmp_path, text, said):
    save(tmp_path / "1.png")
    (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpecError, match=said):
        open_source(tmp_path)


def test_what_is_no_folder_of_images_is_refused(tmp_path):
    with pytest.raises(SpecError, match="expected a folder of images .* got no image in any folder there"):
        open_source(tmp_path)
    save(tmp_path / "1.png")
    with pytest.raises(SpecError, match=r"got images without labels\.csv \(file_name,label\)"):
        open_source(tmp_path)
    with pytest.raises(SpecError, match=r"--labels: expected labels\.csv or metadata\.csv with a column 'age'"):
        open_source(tmp_path, "age")
    for name in ("labels.csv", "metadata.csv"):
        (tmp_path / name).write_text("file_name,label\n1.png,1\n")
    with pytest.raises(SpecError, match=r"expected labels\.csv or metadata\.csv, got both"):
        open_source(tmp_path)
    with pytest.raises(SpecError, match="expected a file or a folder, got nothing there"):
        open_source(tmp_path / "nothing")
    with pytest.raises(SpecError, match="expected a folder of images, or a file named .npz"):
        open_source(tmp_path / "1.png")
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(SpecError, match="expected a file or a folder, got something else"):
        open_source(tmp_path / "pipe.npz")


def test_the_digest_follows_names_sizes_and_times(tmp_path):
    write_images(tmp_path, 6)
    before = open_source(tmp_path).digest()
    assert open_source(tmp_path).digest() == before
    one = tmp_path / "class-0" / "0000.png"
    os.utime(one, ns=(0, one.stat().st_mtime_ns + 1))
    assert open_source(tmp_path).digest() != before


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_broken_image_is_named(tmp_path, content):
    write_images(tmp_path, 1, 1)
    path = (tmp_path / "class-0" / "0000.png").rename(tmp_path / "class-0" / "bad.png")
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    (batch,) = open_source(tmp_path).batches(0, 8)
    with pytest.raises(
        SpecError, match=r"image .*/class-0/bad\.png: expected an image that Pillow reads, got .*; repair"
    ):
        decode(batch[0])


def test_an_image_beyond_pillows_limit_is_named(tmp_path, monkeypatch):
    save(tmp_path / "a" / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    (batch,) = open_source(tmp_path).batches(0, 8)
    with pytest.raises(SpecError, match=r"large\.png: expected an image that Pillow reads, got Image size"):
        decode(batch[0])


def test_batches_begin_anywhere(tmp_path):
    source = open_source(write_images(tmp_path, 7, 1))
    found = [[one.owner.rpartition("/")[2] for one in batch] for batch in source.batches(3, 2)]
    assert found == [["0003.png", "0004.png"], ["0005.png", "0006.png"]]
