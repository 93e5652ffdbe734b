"""Temporary folders are deleted after use, and swept if their process died."""

import os
import signal
import subprocess
import sys

import pytest

from regplug.format.temporary import delete, temporary_folder

MAKER = """
import sys, time
from pathlib import Path
from regplug.format.temporary import temporary_folder
with temporary_folder(Path(sys.argv[1]), "made-") as folder:
    (folder / "inside").mkdir()
    (folder / "inside" / "file").write_text("x")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_temporary_folder_is_private_and_deleted_afterwards(tmp_path):
    with temporary_folder(tmp_path, "made-") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_killed_processes_are_deleted_and_those_of_living_ones_kept(tmp_path):
    maker = subprocess.Popen([sys.executable, "-c", MAKER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert maker.stdout.readline() == "ready\n"
    (tmp_path / "made-by-hand").mkdir()
    [left] = tmp_path.glob("made-????????????")
    with temporary_folder(tmp_path, "made-"):
        assert (left / "inside" / "file").exists()
    maker.send_signal(signal.SIGKILL)
    maker.communicate()
    assert left.exists()
    with temporary_folder(tmp_path, "made-") as folder:
        assert sorted(os.listdir(tmp_path)) == sorted([folder.name, "made-by-hand"])  # noqa: PTH208


def test_a_link_with_a_temporary_name_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    (tmp_path / "made-0123456789ab").symlink_to(tmp_path / "mine")
    with temporary_folder(tmp_path, "made-"):
        pass
    assert (tmp_path / "mine" / "file").exists()


@pytest.mark.parametrize("call", ["chmod", "fchmod", "lstat", "open"])
def test_a_link_that_takes_a_folders_place_while_it_is_deleted_is_not_followed(tmp_path, monkeypatch, call):
    target, place = tmp_path / "target", tmp_path / "place"
    for folder in (target, place):
        folder.mkdir()
        (folder / "file").write_text("x")
        folder.chmod(0o500)
    real = getattr(os, call)

    def swap_and_call(*args, **kwargs):
        monkeypatch.setattr(os, call, real)
        place.rename(tmp_path / "aside")
        place.symlink_to(target)
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, swap_and_call)
    delete(place)
    assert target.stat().st_mode & 0o777 == 0o500
    assert (target / "file").exists()


def test_a_folder_that_may_not_be_written_a_file_and_a_link_are_deleted(tmp_path):
    folder, file, link = tmp_path / "folder", tmp_path / "file", tmp_path / "link"
    folder.mkdir()
    (folder / "file").write_text("x")
    folder.chmod(0o500)
    file.write_text("x")
    link.symlink_to(tmp_path / "nowhere")
    for path in (folder, file, link, tmp_path / "missing"):
        delete(path)
    assert list(tmp_path.iterdir()) == []
