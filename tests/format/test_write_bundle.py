"""Writing a bundle is atomic, whatever happens in between."""

import errno
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.commands import run_command

from regplug.errors import ExportError
from regplug.format import durable, single_file, temporary, write_bundle
from regplug.format.single_file import write_files
from regplug.format.temporary import locked_folder, prefix_for
from regplug.format.write_bundle import write_folder

OLD = {"manifest.json": b"old", "weights.safetensors": b"old" * 1000}
NEW = {"manifest.json": b"new", "golden.safetensors": b"new" * 1000}


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def stale(parent):
    return sorted(entry.name for entry in parent.iterdir() if "regplug-" in entry.name)


def test_a_folder_is_made_with_its_parents_and_plain_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_folder(tmp_path / "a" / "b", NEW, force=False)
    finally:
        os.umask(before)
    assert content(tmp_path / "a" / "b") == NEW
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "a" / "b" / "manifest.json").stat().st_mode) == 0o640


def test_an_existing_bundle_is_kept_without_force(tmp_path):
    write_folder(tmp_path / "b", OLD, force=False)
    with pytest.raises(ExportError, match="exists and is kept; use force to replace it"):
        write_folder(tmp_path / "b", NEW, force=False)
    assert content(tmp_path / "b") == OLD
    write_folder(tmp_path / "b", NEW, force=True)
    assert content(tmp_path / "b") == NEW
    assert stale(tmp_path) == []


def test_an_empty_folder_is_filled_and_stays_the_same_folder(tmp_path):
    (tmp_path / "b").mkdir(0o750)
    (tmp_path / "b" / "lost+found").mkdir()
    (tmp_path / "b" / ".git").mkdir()
    (tmp_path / "b" / "README.md").write_text("# mine")
    before = (tmp_path / "b").stat()
    write_folder(tmp_path / "b", NEW, force=False)
    assert (tmp_path / "b").stat().st_ino == before.st_ino
    assert {name: (tmp_path / "b" / name).read_bytes() for name in NEW} == NEW
    assert sorted(entry.name for entry in (tmp_path / "b").iterdir()) == sorted(
        [*NEW, "lost+found", ".git", "README.md"]
    )
    with pytest.raises(ExportError, match="exists and is kept"):
        write_folder(tmp_path / "b", NEW, force=False)


@pytest.mark.parametrize("name", ["thesis.tex", "weights.bin", "manifest.json.bak"])
def test_force_never_replaces_a_folder_with_a_users_files(tmp_path, name):
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


def test_a_readme_and_dotfiles_in_the_old_bundle_are_kept(tmp_path):
    write_folder(tmp_path / "b", OLD, force=False)
    (tmp_path / "b" / "README.md").write_text("# mine")
    (tmp_path / "b" / ".gitattributes").write_text("*.pt lfs")
    write_folder(tmp_path / "b", NEW, force=True)
    assert content(tmp_path / "b") == {**NEW, "README.md": b"# mine", ".gitattributes": b"*.pt lfs"}


def test_a_folder_inside_the_old_bundle_is_not_deleted(tmp_path):
    write_folder(tmp_path / "b", OLD, force=False)
    (tmp_path / "b" / ".git").mkdir()
    with pytest.raises(ExportError, match="expected only files next to those of the bundle, got .git; move it away"):
        write_folder(tmp_path / "b", NEW, force=True)
    assert (tmp_path / "b" / ".git").is_dir()


def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(tmp_path):
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


def test_a_path_that_cannot_be_written_is_an_export_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written: File exists; nothing was changed"):
        write_folder(tmp_path / "file" / "b", NEW, force=False)


def test_of_several_exporters_to_one_new_path_one_succeeds_and_the_others_get_an_error(tmp_path):
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
from regplug.format.write_bundle import write_folder
versions = [{"manifest.json": mark, "golden.safetensors": mark * 300_000} for mark in (b"a", b"b")]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process inherits that it is ignored
print("ready", flush=True)
turn = 0
while True:
    turn += 1
    write_folder(Path(sys.argv[1]), versions[turn % 2], force=True)
"""


@pytest.mark.slow
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
    assert left > 0  # else no writer was killed while it wrote
    write_folder(place, whole[0], force=True)
    assert stale(tmp_path) == []


def test_an_interrupted_export_leaves_a_complete_bundle_and_its_temporary_folder_is_swept(tmp_path):
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
    write_folder(place, whole[0], force=True)  # an interrupt may come while the temporary folder is being deleted
    assert stale(tmp_path) == []


def test_the_folder_of_a_living_exporter_is_not_swept(tmp_path):
    with locked_folder(tmp_path, prefix_for(tmp_path / "b")) as folder:
        (folder / "half").write_text("")
        write_folder(tmp_path / "b", NEW, force=False)
        assert (folder / "half").exists()
    write_folder(tmp_path / "b", NEW, force=True)
    assert stale(tmp_path) == []


def test_names_that_only_resemble_temporary_ones_are_kept(tmp_path):
    (tmp_path / ".b.regplug-notes").mkdir()
    (tmp_path / ".b.regplug-0123456789ab.txt").write_text("mine")
    (tmp_path / ".c.regplug-0123456789ab").mkdir()
    (tmp_path / ".b.regplug-0123456789ab").mkdir()
    (tmp_path / ".b.regplug-0123456789ac").write_text("of a single file")
    write_folder(tmp_path / "b", NEW, force=False)
    assert stale(tmp_path) == [".b.regplug-0123456789ab.txt", ".b.regplug-notes", ".c.regplug-0123456789ab"]


def late(monkeypatch, module, name, first):
    """Call ``first`` just before the writer's first call of a step."""
    step = getattr(module, name)

    def stepped(*arguments):
        monkeypatch.setattr(module, name, step)
        first()
        return step(*arguments)

    monkeypatch.setattr(module, name, stepped)


def test_a_bundle_created_concurrently_is_not_replaced_without_force(tmp_path, monkeypatch):
    late(monkeypatch, write_bundle, "sync_folder", lambda: write_folder(tmp_path / "b", OLD, force=False))
    with pytest.raises(ExportError, match="exists and is kept; use force"):
        write_folder(tmp_path / "b", NEW, force=False)
    assert content(tmp_path / "b") == OLD
    assert stale(tmp_path) == []


def test_a_bundle_created_concurrently_is_replaced_with_force(tmp_path, monkeypatch):
    late(monkeypatch, write_bundle, "sync_folder", lambda: write_folder(tmp_path / "b", OLD, force=False))
    write_folder(tmp_path / "b", NEW, force=True)
    assert content(tmp_path / "b") == NEW
    assert stale(tmp_path) == []


def test_an_exporter_makes_another_folder_if_its_first_was_swept_before_it_was_locked(tmp_path, monkeypatch):
    late(monkeypatch, temporary.fcntl, "flock", lambda: next(tmp_path.glob(".b.regplug-*")).rmdir())
    write_folder(tmp_path / "b", NEW, force=False)
    assert content(tmp_path / "b") == NEW


def test_an_exporter_waits_for_the_one_that_replaces_the_same_bundle(tmp_path):
    write_folder(tmp_path / "b", OLD, force=False)
    descriptor = temporary.lock(tmp_path / "b")
    other = threading.Thread(target=write_folder, args=(tmp_path / "b", NEW, True))
    other.start()
    other.join(0.1)
    assert other.is_alive()
    assert content(tmp_path / "b") == OLD
    temporary.release(descriptor)
    other.join(60)
    assert content(tmp_path / "b") == NEW


def test_an_exporter_waits_for_a_limited_time(tmp_path, monkeypatch):
    monkeypatch.setattr(write_bundle, "LOCK_TIMEOUT_S", 0)
    write_folder(tmp_path / "b", OLD, force=False)
    descriptor = temporary.lock(tmp_path / "b")
    with pytest.raises(ExportError, match="expected it to be free, got another exporter's lock for 0 s; end that one"):
        write_folder(tmp_path / "b", NEW, force=True)
    temporary.release(descriptor)
    assert content(tmp_path / "b") == OLD


def fsync_that(monkeypatch, folder, code):
    """Let the sync of one folder fail."""
    fsync = os.fsync

    def failing(descriptor):
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(durable.os, "fsync", failing)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_syncs_no_folders_does_not_make_a_written_bundle_an_error(tmp_path, monkeypatch, code):
    fsync_that(monkeypatch, tmp_path, code)
    write_folder(tmp_path / "b", NEW, force=False)
    assert content(tmp_path / "b") == NEW


def test_an_exchange_that_cannot_be_synced_keeps_the_old_bundle_and_says_where(tmp_path, monkeypatch):
    write_folder(tmp_path / "b", OLD, force=False)
    fsync_that(monkeypatch, tmp_path, errno.EIO)
    with pytest.raises(ExportError, match="the new bundle is there, the old one next to it as .b.regplug-") as raised:
        write_folder(tmp_path / "b", NEW, force=True)
    assert "nothing was changed" not in str(raised.value)
    [kept] = stale(tmp_path)
    assert (content(tmp_path / "b"), content(tmp_path / kept)) == (NEW, OLD)
    with pytest.raises(ExportError, match="Input/output error; nothing was changed"):
        write_folder(tmp_path / "b", NEW, force=True)  # and the old bundle next to it is not swept
    assert stale(tmp_path) == [kept]
    monkeypatch.undo()
    write_folder(tmp_path / "b", NEW, force=True)
    assert stale(tmp_path) == []


def test_folders_made_for_a_bundle_that_cannot_be_written_are_removed(tmp_path, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(ExportError, match="nothing was changed"):
            write_folder(tmp_path / "a" / "b" / "c", NEW, force=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


# ---- permissions


def modes(folder):
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in [folder, *folder.iterdir()]}


def test_a_replaced_bundle_keeps_its_permissions_and_a_new_file_gets_no_more_than_the_manifest_had(tmp_path):
    place = tmp_path / "b"
    write_folder(place, OLD, force=False)
    (place / ".notes").write_text("mine")
    for file, mode in (("", 0o2700), ("manifest.json", 0o600), ("weights.safetensors", 0o640), (".notes", 0o604)):
        (place / file).chmod(mode)
    os.utime(place / ".notes", (1, 2))
    write_folder(place, {**OLD, "golden.safetensors": b"new"}, force=True)
    assert modes(place) == {
        "b": 0o2700,
        "manifest.json": 0o600,
        "weights.safetensors": 0o640,
        "golden.safetensors": 0o600,
        ".notes": 0o604,
    }
    assert (place / ".notes").stat().st_mtime == 2


def test_owner_and_group_are_kept_and_a_group_that_cannot_be_given_gets_no_permissions(tmp_path, monkeypatch):
    write_folder(tmp_path / "b", OLD, force=False)
    file = tmp_path / "b" / "manifest.json"
    file.chmod(0o664)
    if os.geteuid() == 0:
        os.chown(file, 12345, 23456)
        write_folder(tmp_path / "b", OLD, force=True)
        assert (file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o777) == (12345, 23456, 0o664)
    old = os.stat_result([0o100664, 1, 1, 1, 12345, 23456, 0, 0, 0, 0])

    def refuse(*arguments):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(durable.os, "fchown", refuse)
    with (tmp_path / "new").open("w") as new:
        durable.make_like(new.fileno(), old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o604


def test_a_bundle_is_closed_to_others_while_it_is_written(tmp_path, monkeypatch):
    seen = []
    write = write_bundle.write_file

    def look(path, *arguments):
        seen.append(stat.S_IMODE(path.parent.stat().st_mode))
        write(path, *arguments)

    monkeypatch.setattr(write_bundle, "write_file", look)
    write_folder(tmp_path / "b", OLD, force=False)
    write_folder(tmp_path / "b", NEW, force=True)
    assert set(seen) == {0o700}
    assert len(seen) == 4


# ---- single files


def test_single_files_keep_the_permissions_of_those_they_replace(tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "old").chmod(0o600)
    (tmp_path / ".old.regplug-0123456789ab").write_bytes(b"of a killed writer")
    before = os.umask(0o027)
    try:
        write_files({tmp_path / "old": b"new", tmp_path / "in" / "new": b"new"}, force=True)
    finally:
        os.umask(before)
    assert [(tmp_path / name).read_bytes() for name in ("old", "in/new")] == [b"new", b"new"]
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("old", "in/new")] == [0o600, 0o640]
    assert stale(tmp_path) == []


def test_a_single_file_created_concurrently_is_kept(tmp_path, monkeypatch):
    late(monkeypatch, single_file, "rename_to_new", lambda: (tmp_path / "f").write_bytes(b"mine"))
    with pytest.raises(ExportError, match="exists and is kept; use force to replace it"):
        write_files({tmp_path / "f": b"new"}, force=False)
    assert content(tmp_path) == {"f": b"mine"}


def test_a_single_file_that_cannot_be_written_is_named_with_those_already_written(tmp_path, monkeypatch):
    late(monkeypatch, Path, "replace", lambda: (tmp_path / "two").mkdir())
    with pytest.raises(ExportError, match=r"file .*two: cannot be written: Is a directory; already written: .*one\.$"):
        write_files({tmp_path / "one": b"1", tmp_path / "two": b"2"}, force=True)
    assert (tmp_path / "one").read_bytes() == b"1"
    assert stale(tmp_path) == []


def test_a_file_system_that_cannot_rename_to_new_places_only_links_instead(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(durable, "_rename", refuse)
    write_files({tmp_path / "f": b"1"}, force=False)
    with pytest.raises(ExportError, match="exists and is kept"):
        write_files({tmp_path / "f": b"2"}, force=False)
    assert content(tmp_path) == {"f": b"1"}


# ---- the command


EXPORT = ["export", "mean", "--num-registers", "4", "--hidden-dim", "24", "--no-programs", "--force", "-o"]
NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}  # with a limit of file sizes Python would leave some that is truncated


@pytest.fixture(scope="module")
def exported_once(tmp_path_factory):
    place = tmp_path_factory.mktemp("exported") / "b"
    assert run_command(*EXPORT, place)[0] == 0
    return place


@pytest.fixture
def exported(exported_once, tmp_path):
    """An existing bundle, and its bytes."""
    place = shutil.copytree(exported_once, tmp_path / "b")
    return place, content(place)


@pytest.mark.slow
def test_the_command_exits_with_1_on_a_full_disk_and_keeps_the_old_bundle(exported, with_torch):
    place, old = exported
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
    code += "from regplug.commands.main import main; main()"
    done = with_torch.run(["-c", code, *EXPORT, str(place)], place.parent, os.environ | NO_BYTECODE)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: bundle {place}: cannot be written: File too large; nothing was changed.\n" == done.stderr
    assert content(place) == old
    assert stale(place.parent) == []


@pytest.mark.slow
def test_the_command_exits_with_1_on_a_read_only_path_and_keeps_the_old_bundle(exported):
    place, old = exported
    # also for root: a file system mounted read-only in a namespace of this process
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && "$@"'
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, place.parent]
    command = [*namespace, sys.executable, "-m", "regplug", *EXPORT, place]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    why = "Read-only file system"
    assert done.stderr == f"error: bundle {place}: cannot be written: {why}; nothing was changed.\n"
    assert (done.returncode, done.stdout) == (1, "")
    assert content(place) == old


SLOWLY = """
import os, signal, sys
from regplug.format import write_bundle
from regplug.commands.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
write = write_bundle.write_file
def interrupt(path, *arguments):
    write(path, *arguments)
    os.kill(os.getpid(), signal.SIGINT)
write_bundle.write_file = interrupt
main()
"""


@pytest.mark.slow
def test_the_command_exits_with_130_on_an_interrupt_and_keeps_the_old_bundle(exported, with_torch):
    place, old = exported
    done = with_torch.run(["-c", SLOWLY, *EXPORT, str(place)], place.parent, os.environ)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "interrupted")
    assert content(place) == old
    assert stale(place.parent) == []
