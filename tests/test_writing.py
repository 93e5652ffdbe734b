"""Putting a bundle in place: all of it, or nothing, whatever happens in between."""

import os
import random
import resource
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from regplug import writing
from regplug.errors import ExportError
from regplug.writing import write_folder

OLD = {"manifest.json": b"old", "weights.safetensors": b"old" * 1000}
NEW = {"manifest.json": b"new", "golden.safetensors": b"new" * 1000}


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def stale(parent):
    return [entry.name for entry in parent.iterdir() if "regplug-" in entry.name]


def test_a_folder_is_made_with_its_parents_and_plain_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_folder(tmp_path / "a" / "b", NEW, force=False)
    finally:
        os.umask(before)
    assert content(tmp_path / "a" / "b") == NEW
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "a" / "b" / "manifest.json").stat().st_mode) == 0o640


def test_what_stands_there_is_kept_unless_it_is_to_be_replaced(tmp_path):
    write_folder(tmp_path / "b", OLD, force=False)
    with pytest.raises(ExportError, match="exists and is kept; use force to replace it"):
        write_folder(tmp_path / "b", NEW, force=False)
    assert content(tmp_path / "b") == OLD
    write_folder(tmp_path / "b", NEW, force=True)
    assert content(tmp_path / "b") == NEW
    assert stale(tmp_path) == []


def test_an_empty_folder_is_kept_too_and_may_be_replaced(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(ExportError, match="exists and is kept"):
        write_folder(tmp_path / "b", NEW, force=False)
    write_folder(tmp_path / "b", NEW, force=True)
    assert content(tmp_path / "b") == NEW


@pytest.mark.parametrize("name", ["thesis.tex", "weights.bin", "manifest.json.bak"])
def test_force_never_replaces_a_folder_with_somebodys_work_in_it(tmp_path, name):
    write_folder(tmp_path / "b", OLD, force=False)
    (tmp_path / "b" / name).write_text("years")
    with pytest.raises(ExportError, match=f"expected a bundle to replace, got a folder with {name}"):
        write_folder(tmp_path / "b", NEW, force=True)
    assert content(tmp_path / "b") == {**OLD, name: b"years"}


def test_force_never_replaces_a_folder_without_a_manifest_a_file_or_a_link(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "weights.safetensors").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "weights")
    for name in ("weights", "file", "link"):
        with pytest.raises(ExportError):
            write_folder(tmp_path / name, NEW, force=True)
    assert (tmp_path / "file").read_text() == "mine"
    assert content(tmp_path / "weights") == {"weights.safetensors": b"mine"}


def test_a_readme_and_dotfiles_beside_the_bundle_are_carried_over(tmp_path):
    write_folder(tmp_path / "b", OLD, force=False)
    (tmp_path / "b" / "README.md").write_text("# mine")
    (tmp_path / "b" / ".gitattributes").write_text("*.pt lfs")
    write_folder(tmp_path / "b", NEW, force=True)
    assert content(tmp_path / "b") == {**NEW, "README.md": b"# mine", ".gitattributes": b"*.pt lfs"}


def test_a_folder_beside_the_bundle_is_not_thrown_away(tmp_path):
    write_folder(tmp_path / "b", OLD, force=False)
    (tmp_path / "b" / ".git").mkdir()
    with pytest.raises(ExportError, match="expected only files beside the bundle, got .git; move it away"):
        write_folder(tmp_path / "b", NEW, force=True)
    assert (tmp_path / "b" / ".git").is_dir()


def test_a_disk_that_takes_no_more_leaves_the_old_bundle_and_nothing_else(tmp_path):
    write_folder(tmp_path / "b", OLD, force=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # a write past it fails, as on a full disk
    try:
        with pytest.raises(ExportError, match="cannot be written: File too large; nothing was changed"):
            write_folder(tmp_path / "b", NEW, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(tmp_path / "b") == OLD
    assert stale(tmp_path) == []


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written: File exists; nothing was changed"):
        write_folder(tmp_path / "file" / "b", NEW, force=False)


def test_of_exporters_to_one_new_place_one_wins_whole_and_the_others_are_told(tmp_path):
    outcomes = []

    def one(number):
        files = {"manifest.json": b"%d" % number, "golden.safetensors": b"%d" % number * 100_000}
        try:
            write_folder(tmp_path / "b", files, force=False)
            outcomes.append(files)
        except ExportError:
            outcomes.append(None)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [files for files in outcomes if files]
    assert winners == [content(tmp_path / "b")]
    assert stale(tmp_path) == []


WRITER = """
import signal
import sys
from pathlib import Path
from regplug.writing import write_folder
versions = [{"manifest.json": mark, "golden.safetensors": mark * 300_000} for mark in (b"a", b"b")]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background ignores it, and we inherit that
print("ready", flush=True)
turn = 0
while True:
    turn += 1
    write_folder(Path(sys.argv[1]), versions[turn % 2], force=True)
"""


def test_an_exporter_killed_at_any_moment_loses_nothing_and_leaves_nothing_for_long(tmp_path):
    place = tmp_path / "b"
    whole = [{"manifest.json": mark, "golden.safetensors": mark * 300_000} for mark in (b"a", b"b")]
    write_folder(place, whole[0], force=False)
    moments = random.Random(0)
    left = 0
    for _ in range(25):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, place], stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 0.02))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert content(place) in whole
        left += len(stale(tmp_path))
    assert left > 0  # or no writer was killed at work, and this test saw nothing
    write_folder(place, whole[0], force=True)
    assert stale(tmp_path) == []


def test_an_interrupted_export_leaves_a_whole_bundle_and_what_it_leaves_beside_is_swept(tmp_path):
    place = tmp_path / "b"
    whole = [{"manifest.json": mark, "golden.safetensors": mark * 300_000} for mark in (b"a", b"b")]
    write_folder(place, whole[0], force=False)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, place], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "ready\n"
    time.sleep(0.05)
    writer.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in writer.communicate(timeout=60)[1]
    assert content(place) in whole
    write_folder(place, whole[0], force=True)  # an interrupt may come while the folder beside is being deleted
    assert stale(tmp_path) == []


def test_a_living_exporters_folder_is_not_swept(tmp_path):
    from regplug.writing import _sibling

    with _sibling(tmp_path / "b") as folder:
        (folder / "half").write_text("")
        write_folder(tmp_path / "b", NEW, force=False)
        assert (folder / "half").exists()
    assert stale(tmp_path) == []


def test_a_bundle_that_came_into_being_at_the_last_moment_is_not_replaced_without_force(tmp_path, monkeypatch):
    put_in_place = writing._put_in_place

    def late(folder, directory, force):
        monkeypatch.undo()
        write_folder(directory, OLD, force=False)
        put_in_place(folder, directory, force)

    monkeypatch.setattr(writing, "_put_in_place", late)
    with pytest.raises(ExportError, match="nothing was changed"):
        write_folder(tmp_path / "b", NEW, force=False)
    assert content(tmp_path / "b") == OLD
    assert stale(tmp_path) == []


def test_an_exporter_whose_folder_was_swept_before_it_was_locked_takes_another(tmp_path, monkeypatch):
    flock, swept = writing.fcntl.flock, []

    def sweep_first(descriptor, operation):
        if not swept:
            swept.extend(tmp_path.glob(".b.regplug-*"))
            swept[0].rmdir()
        flock(descriptor, operation)

    monkeypatch.setattr(writing.fcntl, "flock", sweep_first)
    write_folder(tmp_path / "b", NEW, force=False)
    assert content(tmp_path / "b") == NEW
    assert len(swept) == 1


def test_a_file_system_that_cannot_sync_the_parent_folder_does_not_make_a_written_bundle_an_error(
    tmp_path, monkeypatch
):
    sync = writing._sync

    def refuse(folder):
        if folder == tmp_path:
            raise OSError(22, "Invalid argument")
        sync(folder)

    monkeypatch.setattr(writing, "_sync", refuse)
    write_folder(tmp_path / "b", NEW, force=False)
    assert content(tmp_path / "b") == NEW
