"""Folders that are gone when they are done with, and swept where their maker died."""

import os
import signal
import subprocess
import sys

from regplug.temporary import temporary_folder

MAKER = """
import sys, time
from pathlib import Path
from regplug.temporary import temporary_folder
with temporary_folder(Path(sys.argv[1]), "made-") as folder:
    (folder / "inside").mkdir()
    (folder / "inside" / "file").write_text("x")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_temporary_folder_is_its_owners_alone_and_gone_afterwards(tmp_path):
    with temporary_folder(tmp_path, "made-") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_a_living_one_uses_stays(tmp_path):
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


def test_a_link_under_such_a_name_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    (tmp_path / "made-0123456789ab").symlink_to(tmp_path / "mine")
    with temporary_folder(tmp_path, "made-"):
        pass
    assert (tmp_path / "mine" / "file").exists()
