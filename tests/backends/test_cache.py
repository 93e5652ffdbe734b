"""The cache: an entry is found complete or not at all, even with several processes."""

import os
import subprocess
import sys
import time

import pytest

from regplug.backends import cache
from regplug.format.temporary import locked_file

DESCRIPTION = {"backend": "b", "strategy": "s", "settings": {}}
KEY = "a" * 64


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_kept_files_are_found_with_their_description():
    assert cache.find(KEY) is None
    cache.keep(KEY, DESCRIPTION, {"program.b": b"one", "program.b.2": bytes(range(256))})
    description, files = cache.find(KEY)
    assert files == {"program.b": b"one", "program.b.2": bytes(range(256))}
    assert DESCRIPTION.items() <= description.items()
    assert cache.find("b" * 64) is None


def test_the_folder_is_private_to_the_user(folder):
    cache.keep(KEY, DESCRIPTION, {"program.b": b"one"})
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == list(folder.glob(f"{KEY}-*.safetensors"))


def test_a_folder_into_which_others_may_write_is_not_used(folder, caplog):
    cache.keep(KEY, DESCRIPTION, {"program.b": b"one"})
    folder.chmod(0o777)
    assert cache.find(KEY) is None
    cache.keep(KEY, DESCRIPTION, {"program.b": b"one"})
    assert caplog.messages == [
        f"cache {folder}: not written: the folder is not this user's alone, others may write into it; "
        "run chmod go-w on it; the next export compiles again."
    ]


@pytest.mark.parametrize("where", [0, 9, 300, -1])
def test_an_entry_with_one_changed_byte_is_deleted(folder, where):
    cache.keep(KEY, DESCRIPTION, {"program.b": bytes(500)})
    [path] = folder.iterdir()
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    assert cache.find(KEY) is None
    assert list(folder.iterdir()) == []


def test_a_truncated_entry_is_listed_as_damaged_and_pruned(folder):
    cache.keep(KEY, DESCRIPTION, {"program.b": bytes(500)})
    [path] = folder.iterdir()
    os.truncate(path, 100)
    [entry] = cache.entries()
    assert (entry.description, entry.size) == (None, 100)
    assert cache.prune(days=30) == [entry]
    assert cache.entries() == []


def test_prune_deletes_unused_entries_and_unfinished_files(folder):
    cache.keep(KEY, DESCRIPTION, {"program.b": b"old"})
    [old] = folder.iterdir()
    cache.keep("b" * 64, DESCRIPTION, {"program.b": b"new"})
    (folder / ".0123.writing").write_bytes(b"half")
    (folder / ".4567.writing").write_bytes(b"being written")
    (folder / "notes.txt").write_text("not ours")
    for path, days in ((old, 31), (folder / ".0123.writing", 2)):
        os.utime(path, (time.time() - days * cache.DAY_S,) * 2)
    assert [one.path for one in cache.prune(days=30)] == [old]
    assert {path.name[:5] for path in folder.iterdir()} == {"bbbbb", ".4567", "notes"}


def test_a_folder_into_which_others_may_write_is_neither_listed_nor_pruned(folder):
    cache.keep(KEY, DESCRIPTION, {"program.b": b"one"})
    folder.chmod(0o777)
    for use in (cache.entries, lambda: cache.prune(days=0)):
        with pytest.raises(PermissionError, match="the folder is not this user's alone"):
            use()
    [path] = folder.iterdir()
    command = [sys.executable, "-m", "regplug", "cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {folder}: the folder is not this user's alone, others may write into it; run chmod go-w on it\n",
    )
    folder.chmod(0o700)
    assert [one.path for one in cache.entries()] == [path]


def test_a_pipe_with_the_name_of_an_entry_is_damage_and_is_not_waited_for(folder):
    folder.mkdir(mode=0o700)
    os.mkfifo(folder / f"{KEY}-{'0' * 64}.safetensors")
    [entry] = cache.entries()
    assert entry.description is None
    assert cache.find(KEY) is None
    assert list(folder.iterdir()) == []


def test_unfinished_files_of_a_killed_process_are_deleted_with_the_next_entry(folder):
    cache.keep(KEY, DESCRIPTION, {"program.b": b"one"})
    (folder / f"{cache.WRITING}0123456789ab").write_bytes(b"half")
    with locked_file(folder, cache.WRITING, 0o600) as (_, writing):
        cache.keep(KEY, DESCRIPTION, {"program.b": b"two"})
        assert [path.name for path in folder.glob(".*")] == [writing.name]


def test_without_a_folder_there_is_nothing_to_prune(folder):
    assert not folder.exists()
    assert cache.prune(days=0) == []


def test_finding_an_entry_counts_as_using_it(folder):
    cache.keep(KEY, DESCRIPTION, {"program.b": b"old"})
    [path] = folder.iterdir()
    os.utime(path, (0, 0))
    cache.find(KEY)
    assert cache.prune(days=1) == []


def test_the_environment_decides_where_the_folder_is(monkeypatch, tmp_path):
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("REGPLUG_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(cache.cache_folder()) == "/xdg/regplug"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home-of-someone")
    assert str(cache.cache_folder()) == "/home-of-someone/.cache/regplug"


def test_without_a_home_nothing_is_found_or_kept_and_one_line_says_so(monkeypatch, caplog):
    for name in ("REGPLUG_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "~")
    why = "no home directory; set REGPLUG_CACHE_DIR"
    with pytest.raises(OSError, match=why):
        cache.entries()
    assert cache.find(KEY) is None
    cache.keep(KEY, DESCRIPTION, {"program.b": b"one"})
    assert caplog.messages == [f"cache folder: not written: {why}; the next export compiles again."]


WRITER = """
import sys
from regplug.backends import cache
while True:
    cache.keep("a" * 64, {"who": sys.argv[1]}, {"program.b": sys.argv[1].encode() * 100_000})
"""
READER = """
import sys
from regplug.backends import cache
seen = 0
while seen < 100:
    found = cache.find("a" * 64)
    if found is not None:
        description, files = found
        assert files == {"program.b": description["who"].encode() * 100_000}, "a mixture"
        seen += 1
    if len(sys.argv) > 1:
        cache.prune(days=0)
"""


def test_processes_that_write_read_prune_and_die_together_see_only_complete_entries(folder):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, who]) for who in "xy"]
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, *words], stderr=subprocess.PIPE) for words in ([], ["prune"])
    ]
    try:
        for reader in readers:
            _, complaint = reader.communicate(timeout=120)
            assert reader.returncode == 0, complaint.decode()
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert all(entry.description for entry in cache.entries())


MAKER = """
import sys
from regplug.backends import cache

with cache.sole_maker(sys.argv[1]):
    print("in", flush=True)
    sys.stdin.readline()
    cache.keep(sys.argv[1], {"backend": "b"}, {"program.b": b"made by another process"})
"""


def test_a_process_waits_while_another_makes_the_files_of_the_same_key():
    command = [sys.executable, "-c", MAKER, KEY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout.readline() == "in\n"
        with cache.sole_maker("b" * 64):
            assert cache.find(KEY) is None
        maker.stdin.write("\n")
        maker.stdin.flush()
        with cache.sole_maker(KEY):
            assert cache.find(KEY)[1] == {"program.b": b"made by another process"}


def test_without_a_cache_folder_there_is_no_lock(folder):
    folder.write_text("no folder")
    with cache.sole_maker(KEY):
        assert folder.read_text() == "no folder"
