"""File systems that lack a system call, and paths that are not a plain folder: what is done, and what is logged."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import regplug
from regplug.commands.main import answer
from regplug.errors import ExportError
from regplug.format import durable, temporary, write_bundle
from regplug.format.destination import FILLING, check_place
from regplug.format.filesystem_support import WEAKER
from regplug.format.single_file import write_files
from regplug.format.temporary import prefix_for
from regplug.format.write_bundle import write_folder

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = b'{"bundle_format": 1, "files": {"weights.safetensors": {}, "golden.safetensors": {}}}'
OLD = {"manifest.json": MANIFEST + b" ", "weights.safetensors": b"old" * 100}
NEW = {"manifest.json": MANIFEST, "golden.safetensors": b"new" * 100}

WRITE = """
import json, logging, os, sys
from pathlib import Path
from regplug.errors import ExportError
from regplug.format.single_file import write_files
from regplug.format.write_bundle import write_folder

def write(place, texts):
    files = {name: text.encode() for name, text in texts.items()}
    write_folder(place, files, force=True)
    write_files({place.with_name("single"): b"single"}, force=False)
"""
WRITE_ONCE = f"""{WRITE}
try:
    write(Path(sys.argv[1]), json.loads(sys.argv[2]))
except ExportError as error:
    sys.exit(f"error: {{error}}")
"""
# answers every request on stdin with one line: what was logged, and the error
WRITE_EACH = f"""{WRITE}
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("regplug").addHandler(handler)
for line in sys.stdin:
    place, texts, os.environ["LACKING"] = json.loads(line)
    lines.clear()
    error = None
    try:
        write(Path(place), texts)
    except ExportError as raised:
        error = str(raised)
    print(json.dumps([lines, error]), flush=True)
"""


class Writer:
    """A process in which system calls fail as requested."""

    def __init__(self, shim):
        command = [sys.executable, "-c", WRITE_EACH]
        env = os.environ | {"LD_PRELOAD": str(shim)}
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def write(self, place, **lacking):
        """Write NEW by force while the calls fail with these error numbers; the logged lines and the error."""
        listed = ",".join(f"{call}={number}" for call, number in lacking.items())
        texts = {name: data.decode() for name, data in NEW.items()}
        print(json.dumps([str(place), texts, listed]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def left(parent):
    return [entry.name for entry in parent.iterdir() if "regplug-" in entry.name]


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    library = tmp_path_factory.mktemp("shim") / "lacking.so"
    source = ROOT / "tests" / "cpp" / "lacking.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def write(shim):
    """``Writer.write`` of one process for the whole module."""
    writer = Writer(shim)
    yield writer.write
    writer.process.communicate()


LACKING = [
    *(("flock", number) for number in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EBADF)),
    *(("renameat2", number) for number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)),
    *(("fsync", number) for number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)),
    *(("fchmod", number) for number in (errno.EPERM, errno.ENOTSUP)),
    *(("chmod", number) for number in (errno.EPERM, errno.ENOTSUP)),
]


@pytest.mark.compiler
@pytest.mark.parametrize("before", ["nothing", "an empty folder", "a bundle"])
@pytest.mark.parametrize(("call", "number"), LACKING, ids=str)
def test_a_bundle_is_written_without_a_system_call_and_one_line_says_what_is_weaker(
    write, tmp_path, call, number, before
):
    place = tmp_path / "b"
    if before == "an empty folder":
        place.mkdir()
    elif before == "a bundle":
        write_folder(place, OLD, force=False)
        (place / "LICENSE").write_text("mine")
    logged, error = write(place, **{call: number})
    assert error is None
    kept = {"LICENSE": b"mine"} if before == "a bundle" else {}
    assert content(place) == NEW | kept
    assert (tmp_path / "single").read_bytes() == b"single"
    assert left(tmp_path) == []
    of_bundle = [line for line in logged if line.startswith(f"bundle {place}: ")]
    weaker = {"renameat2": before == "a bundle", "fchmod": before == "a bundle", "chmod": before != "an empty folder"}
    assert len(of_bundle) == weaker.get(call, True)
    for line in of_bundle:
        assert WEAKER[call.removeprefix("f") if call == "fchmod" else call] in line
    assert all(line.startswith(("bundle ", "file ")) for line in logged)


@pytest.mark.compiler
def test_a_bundle_is_written_without_any_of_the_calls_and_one_line_says_so(write, tmp_path):
    write_folder(tmp_path / "b", OLD, force=False)
    all_of_it = {"flock": 38, "renameat2": 22, "fsync": 22, "fchmod": 1, "chmod": 1, "link": 1, "linkat": 1}
    (first, second), error = write(tmp_path / "b", **all_of_it)
    assert error is None
    assert content(tmp_path / "b") == NEW
    assert all(WEAKER[call] in first for call in ("flock", "renameat2", "fsync", "chmod"))
    assert WEAKER["link"] in second


@pytest.mark.compiler
def test_nothing_is_logged_on_a_local_file_system(write, tmp_path):
    for _ in range(2):
        assert write(tmp_path / "b") == [[], None]
        (tmp_path / "single").unlink()


@pytest.mark.compiler
@pytest.mark.parametrize("call", ["flock", "renameat2", "fsync", "fchmod", "chmod"])
def test_a_call_that_failed_is_not_taken_for_one_that_is_lacking(write, tmp_path, call):
    write_folder(tmp_path / "b", OLD, force=False)
    _, error = write(tmp_path / "b", **{call: errno.EIO})
    assert "Input/output error; nothing was changed" in error
    assert content(tmp_path / "b") == OLD


@pytest.mark.compiler
def test_a_bundle_that_would_be_open_to_more_users_is_not_written_without_chmod(write, tmp_path):
    write_folder(tmp_path / "b", OLD, force=False)
    (tmp_path / "b" / "manifest.json").chmod(0o600)
    _, error = write(tmp_path / "b", fchmod=errno.EPERM, chmod=errno.EPERM)
    assert "more users could read the new one than the old one; nothing was changed" in error
    assert content(tmp_path / "b") == OLD
    assert left(tmp_path) == []


def test_without_locks_what_a_dead_writer_left_is_swept_after_a_day_only(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(temporary.fcntl, "flock", refuse)
    young, old = (tmp_path / f"{prefix_for(tmp_path / 'b')}{12 * digit}" for digit in "01")
    for folder in (young, old):
        folder.mkdir()
    os.utime(old, (0, 0))
    write_folder(tmp_path / "b", NEW, force=False)
    assert left(tmp_path) == [young.name]


# ---- without an exchange


@pytest.fixture
def no_exchange(monkeypatch):
    def refuse(one, other):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(write_bundle, "exchange", refuse)


class Died(BaseException):
    """The writer was killed here."""


def dying(monkeypatch, method, at):
    """Kill the writer just before one of its renames or deletions; nothing is cleaned up."""
    real = getattr(Path, method)
    seen = []

    def step(self, *arguments, **options):
        seen.append(self)
        if len(seen) >= at:
            raise Died
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, method, step)
    monkeypatch.setattr(write_bundle, "delete", lambda path: None)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_crash_between_two_renames_loses_neither_bundle(tmp_path, monkeypatch, no_exchange, at):
    write_folder(tmp_path / "b", OLD, force=False)
    with monkeypatch.context() as patch:
        dying(patch, "rename", at)
        with pytest.raises((Died, ExportError)):
            write_folder(tmp_path / "b", NEW, force=True)
    whole = [content(folder) for folder in tmp_path.iterdir()]
    assert OLD in whole
    assert NEW in whole
    last = {"manifest.json": MANIFEST + b"  "}
    with pytest.raises(ExportError, match="exists and is kept"):
        write_folder(tmp_path / "b", last, force=False)  # it is in place again
    assert content(tmp_path / "b") in (OLD, NEW)
    write_folder(tmp_path / "b", last, force=True)
    assert (content(tmp_path / "b"), left(tmp_path)) == (last, [])


def test_a_new_bundle_that_cannot_be_put_in_place_puts_the_old_one_back(tmp_path, monkeypatch, no_exchange):
    write_folder(tmp_path / "b", OLD, force=False)
    rename = Path.rename

    def refuse(self, target):
        if "ready-" in self.name and Path(target).name == "b":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ExportError, match="Input/output error; nothing was changed"):
        write_folder(tmp_path / "b", NEW, force=True)
    assert (content(tmp_path / "b"), left(tmp_path)) == (OLD, [])


def test_a_new_bundle_is_not_put_in_place_of_what_the_user_put_there_after_a_crash(tmp_path, monkeypatch, no_exchange):
    write_folder(tmp_path / "b", OLD, force=False)
    with monkeypatch.context() as patch:
        dying(patch, "rename", 3)
        with pytest.raises((Died, ExportError)):
            write_folder(tmp_path / "b", NEW, force=True)
    (tmp_path / "b").mkdir(exist_ok=True)
    (tmp_path / "b" / "thesis.tex").write_text("years")
    with pytest.raises(ExportError, match="got a folder with thesis.tex"):
        write_folder(tmp_path / "b", NEW, force=True)
    assert content(tmp_path / "b") == {"thesis.tex": b"years"}


# ---- an empty folder is filled


def test_a_reader_finds_no_manifest_while_a_folder_is_being_filled(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    seen = []
    write_file = write_bundle.write_file

    def look(path, data):
        seen.append(sorted(content(tmp_path / "b")))
        write_file(path, data)

    monkeypatch.setattr(write_bundle, "write_file", look)
    write_folder(tmp_path / "b", NEW, force=False)
    assert seen == [[], [FILLING]]
    assert content(tmp_path / "b") == NEW


def test_a_folder_that_cannot_be_filled_is_empty_again(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "README.md").write_text("mine")
    (tmp_path / "b" / "golden.safetensors").mkdir()  # in the way
    with pytest.raises(ExportError, match="exists and is kept"):
        write_folder(tmp_path / "b", NEW, force=False)
    (tmp_path / "b" / "golden.safetensors").rmdir()

    def refuse(path, data):
        (path.parent / path.name).write_bytes(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write_bundle, "write_file", refuse)
    with pytest.raises(ExportError, match="No space left on device; nothing was changed"):
        write_folder(tmp_path / "b", NEW, force=False)
    assert content(tmp_path / "b") == {"README.md": b"mine"}


def test_what_a_dead_writer_left_in_a_folder_is_cleared_and_nothing_else(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / FILLING).write_bytes(MANIFEST)
    (tmp_path / "b" / "weights.safetensors").write_text("half")
    (tmp_path / "b" / ".gitattributes").write_text("mine")
    write_folder(tmp_path / "b", NEW, force=False)
    assert content(tmp_path / "b") == NEW | {".gitattributes": b"mine"}
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / FILLING).write_bytes(MANIFEST)
    (tmp_path / "c" / "program.onnx").write_text("not listed")
    with pytest.raises(ExportError, match="exists and is kept"):
        write_folder(tmp_path / "c", NEW, force=False)


# ---- what cannot be replaced says what to do


def test_the_working_directory_is_filled_and_never_replaced(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    write_folder(Path(), OLD, force=False)
    with pytest.raises(ExportError, match="the working directory cannot be replaced, it would be gone; export from an"):
        write_folder(Path(), NEW, force=True)
    assert content(tmp_path / "b") == OLD


def test_a_link_is_not_replaced_and_the_message_says_what_to_name(tmp_path):
    write_folder(tmp_path / "b", OLD, force=False)
    (tmp_path / "latest").symlink_to("b")
    with pytest.raises(ExportError, match="got a link; name the folder that it leads to"):
        check_place(tmp_path / "latest", force=True)


def test_the_users_files_are_kept_and_a_web_sites_manifest_is_not_taken_for_a_bundles(tmp_path):
    write_folder(tmp_path / "b", OLD, force=False)
    for name in ("LICENSE", "config.json", "Thumbs.db"):
        (tmp_path / "b" / name).write_text("mine")
    os.utime(tmp_path / "b" / "LICENSE", (1, 2))
    write_folder(tmp_path / "b", NEW, force=True)
    assert content(tmp_path / "b") == NEW | dict.fromkeys(("LICENSE", "config.json", "Thumbs.db"), b"mine")
    assert (tmp_path / "b" / "LICENSE").stat().st_mtime == 2
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifest.json").write_text('{"short_name": "site"}')
    (tmp_path / "site" / "index.html").write_text("mine")
    with pytest.raises(ExportError, match=r"expected a bundle to replace, got a folder with index.html"):
        write_folder(tmp_path / "site", NEW, force=True)


MOUNTED = """
set -e
mount -t tmpfs none "$1"
"$2" -c "$3" "$1" "$4"
touch "$1/LICENSE"; mkdir "$1/lost+found"
"$2" -c "$3" "$1" "$4" || echo "refused $?"
LC_ALL=C ls -A "$1"
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0, reason="may not mount"
)
def test_a_mount_point_is_filled_and_a_bundle_that_is_one_is_kept(tmp_path):
    place, files = tmp_path / "b", json.dumps({name: data.decode() for name, data in NEW.items()})
    place.mkdir()
    words = ["unshare", "-m", "sh", "-c", MOUNTED, "sh", place, sys.executable, WRITE_ONCE, files]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "a mount point cannot be replaced in one step; export to a folder inside it" in done.stderr
    assert done.stdout.split("\n")[:-1] == ["refused 1", *sorted([*NEW, "LICENSE", "lost+found"])]


def test_the_table_of_promises_in_the_documentation_is_that_of_the_code():
    page = (ROOT / "docs" / "SECURITY.md").read_text()
    for call, weaker in WEAKER.items():
        assert any(line.startswith(f"| `{call}`") and weaker in line for line in page.splitlines()), call


WEIGHTS = "export mean --num-registers 3 --hidden-dim 7 --force -o OUT --weights"
MISTAKEN = {
    f"{WEIGHTS} BUNDLE": "a bundle's folder, not its weights; use BUNDLE/weights.safetensors.",
    f"{WEIGHTS} BUNDLE/manifest.json": "a bundle's manifest, not its weights; use weights.safetensors next to it",
    f"{WEIGHTS} b.zip": "a zip archive, not a safetensors file; unpack it, or use `regplug import` for a checkpoint",
    f"{WEIGHTS} pointer": "a Git LFS pointer, not the file itself; run `git lfs pull`.",
    "info BUNDLE/manifest.json": "or the folder for the bundle.",
    "info ./b.zip": "a zip archive, not a safetensors file",
    "info ./pointer": "a Git LFS pointer",
    "verify BUNDLE/weights.safetensors": "a file in a bundle, not its folder; use BUNDLE.",
    "verify b.zip": "a zip archive, not a folder; unpack it first.",
    "verify b.tar.gz": "a gzip archive, not a folder; unpack it first.",
    "verify pointer": "a Git LFS pointer, not the file itself; run `git lfs pull`.",
    "verify BUNDLE/weights.safetensors/": "a file in a bundle, not its folder; use BUNDLE.",
    "verify b.tar.bz2": "a bzip2 archive, not a folder; unpack it first.",
    "verify page": "a web page, not a folder; download the file itself.",
    "verify https://hub.example/b": "a URL, not a folder; download it first.",
    "info ./page": "a web page, not a safetensors file",
    "info ./pickle": "a pickle, not a safetensors file; use `regplug import` for a checkpoint of torch.save.",
    "verify BUNDLE --public-key loop": "Too many levels of symbolic links.",
    "sign loop --key none": "key none: missing.",
    **{
        f"import {name} --num-registers 3 --hidden-dim 7 -o OUT": said
        for name, said in {
            "b.tar.gz": "a gzip archive, not a checkpoint; unpack it first.",
            "page": "a web page, not a checkpoint; download the file itself.",
            "BUNDLE/manifest.json": "a bundle's manifest, not its weights; use weights.safetensors next to it",
        }.items()
    },
}


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistaken")
    spec = regplug.resolve("mean", num_registers=3, hidden_dim=7)
    regplug.export(spec, spec.build(), folder / "bundle", backends=[])
    for kind in ("zip", "gztar", "bztar"):
        shutil.make_archive(str(folder / "b"), kind, folder / "bundle")
    (folder / "pointer").write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * '0'}\nsize 208\n")
    (folder / "page").write_text("<!DOCTYPE html><html>sign in</html>")
    torch.save({"weight": torch.ones(3)}, folder / "pickle", _use_new_zipfile_serialization=False)
    (folder / "loop").symlink_to("loop")
    return folder


@pytest.mark.parametrize("command", MISTAKEN)
def test_the_message_says_what_is_at_a_path_that_is_not_a_bundle(mistaken, monkeypatch, capsys, tmp_path, command):
    monkeypatch.chdir(mistaken)
    words = command.replace("BUNDLE", "bundle").replace("OUT", str(tmp_path / "out")).split()
    monkeypatch.setattr(sys, "argv", ["regplug", *words])
    assert answer() == 1
    assert MISTAKEN[command].replace("BUNDLE", "bundle") in capsys.readouterr().err


def test_a_url_is_refused_as_a_path_to_write_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="expected a folder of this machine, got a URL"):
        write_folder(Path("s3://bucket/b"), NEW, force=True)
    with pytest.raises(ExportError, match="expected a file of this machine, got a URL"):
        write_files({Path("hf://user/weights.safetensors"): b"new"}, force=True)
    assert list(tmp_path.iterdir()) == []
    write_folder(tmp_path / "a:b", NEW, force=False)


@pytest.mark.parametrize("name", ["weights.safetensors", "program", "golden.old"])
def test_nothing_is_written_into_a_bundle_that_would_make_it_unreadable(tmp_path, name):
    write_folder(tmp_path / "b", OLD, force=False)
    with pytest.raises(ExportError, match="expected a place outside of bundles, got one inside .*b"):
        write_files({tmp_path / "b" / name: b"new"}, force=True)
    with pytest.raises(ExportError, match="expected a place outside of bundles, got one inside .*b"):
        write_folder(tmp_path / "b" / name, NEW, force=True)
    assert content(tmp_path / "b") == OLD
    write_folder(tmp_path / "b" / "other", NEW, force=False)


@pytest.mark.parametrize("more", [[], ["program.js"]])
def test_the_manifest_of_a_web_site_is_not_replaced_by_force(tmp_path, more):
    site = tmp_path / "site"
    site.mkdir()
    for name in ("manifest.json", *more):
        (site / name).write_text('{"name": "a site", "icons": []}')
    before = content(site)
    with pytest.raises(ExportError, match=r"expected a bundle to replace, got a folder with manifest\.json"):
        write_folder(site, NEW, force=True)
    assert content(site) == before


def test_verify_names_what_is_not_the_bundles_and_opens_none_of_it(mistaken, monkeypatch, capsys, tmp_path):
    place = shutil.copytree(mistaken / "bundle", tmp_path / "b")
    for name in ("LICENSE", "Thumbs.db"):
        os.mkfifo(place / name)  # opening it would hang
    (place / "lost+found").mkdir(mode=0)
    (place / ".gitattributes").write_text("")
    assert regplug.load(place).out_dim == 7
    assert regplug.verify(place).passed_over == (".gitattributes", "LICENSE", "Thumbs.db", "lost\\x2bfound")
    monkeypatch.setattr(sys, "argv", ["regplug", "verify", str(place)])
    assert answer() == 0
    assert "not in the manifest, not opened: .gitattributes, LICENSE, Thumbs.db" in capsys.readouterr().out
    (place / "weights.old").write_text("")
    with pytest.raises(regplug.BundleError, match=r"weights.old: not listed in the manifest; remove it"):
        regplug.load(place)


def test_single_files_are_written_on_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(durable, "_rename", lambda *given: (_ for _ in ()).throw(OSError(errno.EINVAL, "no")))
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    write_files({tmp_path / "f": b"one"}, force=False)
    with pytest.raises(ExportError, match="exists and is kept"):
        write_files({tmp_path / "f": b"two"}, force=False)
    assert (tmp_path / "f").read_bytes() == b"one"
