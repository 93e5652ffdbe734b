"""Reading a folder: damage is reported, and files that would block or change during the read are refused."""

import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from support.damage import DAMAGES, PROGRAM, WEIGHTS, set_value, to_link

import regplug
from regplug.format.folder import read_folder
from regplug.format.limits import MAX_MANIFEST
from regplug.format.read_bundle import read_bundle
from regplug.format.write_bundle import write_folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=24, compressed_dim=6)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("folder") / "bundle"
    regplug.export(spec, spec.build(), folder)
    return folder


@pytest.fixture
def copied(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "bundle")


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_bundle_is_refused_with_the_file_and_the_fault(copied, case):
    damage, message = DAMAGES[case]
    damage(copied)
    with pytest.raises(regplug.BundleError) as error:
        regplug.load(copied, program="torchscript")
    assert str(error.value) == message.replace("DIR", str(copied))


def test_links_are_followed_where_the_caller_allows_them(copied):
    to_link(copied)
    with pytest.raises(regplug.BundleError, match="a symbolic link"):
        regplug.load(copied)
    assert regplug.load(copied, follow_links=True).out_dim == 24


def test_a_link_to_the_bundles_folder_is_followed(copied, tmp_path):
    (tmp_path / "latest").symlink_to(copied)
    assert regplug.load(tmp_path / "latest").out_dim == 24


def test_dotfiles_and_a_readme_in_the_folder_are_never_opened(copied):
    os.mkfifo(copied / "README.md")  # opening it would hang
    os.mkfifo(copied / ".gitattributes")
    (copied / ".git").mkdir()
    assert regplug.load(copied).out_dim == 24


def test_a_link_changed_to_another_bundle_during_a_read_gives_the_other_bundle(bundle, copied, tmp_path):
    other = shutil.copytree(bundle, tmp_path / "other")
    (tmp_path / "latest").symlink_to(copied)
    seen = []

    def read(folder):
        seen.append(folder.read("manifest.json", at_most=MAX_MANIFEST))
        if len(seen) == 1:
            (tmp_path / "latest").unlink()
            (tmp_path / "latest").symlink_to(other)
            (copied / WEIGHTS).unlink()
        return folder.read(WEIGHTS, at_most=1000)

    assert read_folder(tmp_path / "latest", False, read) == (other / WEIGHTS).read_bytes()
    assert len(seen) == 2


def removed(folder):
    shutil.rmtree(folder)


def turned_to_a_file(folder):
    shutil.rmtree(folder)
    folder.touch()


def emptied(folder):
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (removed, "no such folder."),
        (turned_to_a_file, "not a folder."),
        (emptied, "weights.safetensors: missing; export the bundle again."),
    ],
)
def test_a_folder_that_is_removed_during_a_read_is_reported(copied, change, said):
    def read(folder):
        if (copied / WEIGHTS).exists():
            change(copied)
        return folder.read(WEIGHTS, at_most=1000)

    with pytest.raises(regplug.BundleError) as error:
        read_folder(copied, False, read)
    assert str(error.value) == f"bundle {copied}: {said}"


def test_a_folder_that_is_always_replaced_ends_in_an_error(bundle, tmp_path):
    count = 0

    def read(folder):
        nonlocal count
        count += 1
        shutil.copytree(bundle, tmp_path / str(count))
        shutil.rmtree(tmp_path / "b")
        (tmp_path / str(count)).rename(tmp_path / "b")
        return folder.read(WEIGHTS, at_most=1000)

    shutil.copytree(bundle, tmp_path / "b")
    with pytest.raises(regplug.BundleError, match="replaced 100 times while it was read; try again"):
        read_folder(tmp_path / "b", False, read)
    assert count == 100


def test_a_program_that_is_not_kept_is_read_in_parts(copied):
    size = 256 << 20
    os.truncate(copied / PROGRAM, size)
    set_value("files", PROGRAM, "size", value=size)(copied)
    code = (
        "import resource, sys\n"
        "from regplug.errors import BundleError\n"
        "from regplug.format.read_bundle import read_bundle\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))\n"
        "keep = len(sys.argv) > 2\n"
        "try:\n"
        "    read_bundle(sys.argv[1], keep=lambda program: keep)\n"
        "except BundleError as error:\n"
        "    print(error)\n"
    )
    wanted = {(): "sha256 differs from the manifest; export the bundle again.", ("keep",): "expected memory for"}
    for arguments, said in wanted.items():
        command = [sys.executable, "-c", code, copied, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"bundle {copied}: {PROGRAM}: {said}")


def test_a_socket_in_place_of_a_file_is_refused(copied):
    import socket

    (copied / WEIGHTS).unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(copied, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/{WEIGHTS}")  # a socket's path has a short limit
        os.close(here)
        with pytest.raises(regplug.BundleError, match=r"weights.safetensors: not a regular file\.$"):
            regplug.load(copied)


def test_a_reader_sees_the_old_or_the_new_bundle_while_a_writer_replaces_it(bundle, tmp_path):
    spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=24, compressed_dim=6)
    torch.manual_seed(1)
    other = regplug.export(spec, spec.build(), tmp_path / "other")
    versions = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in (bundle, tmp_path / "other")]
    place = tmp_path / "place"
    write_folder(place, versions[0], force=False)
    stop = threading.Event()

    def replace_again_and_again():
        turn = 0
        while not stop.is_set():
            turn += 1
            write_folder(place, versions[turn % 2], force=True)

    writer = threading.Thread(target=replace_again_and_again)
    writer.start()
    try:
        seen = [read_bundle(place).digest for _ in range(300)]
    finally:
        stop.set()
        writer.join()
    assert set(seen) == {read_bundle(bundle).digest, other.digest}
