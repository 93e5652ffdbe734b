"""The load protocol: what damages a bundle is named, whatever hangs or is swapped is refused."""

import os
import shutil
import threading

import pytest
import torch
from damage import DAMAGES, WEIGHTS, to_link

import regplug
from regplug.reading import read_bundle
from regplug.writing import write_folder


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


def test_a_link_to_the_whole_folder_is_a_name_like_any_other(copied, tmp_path):
    (tmp_path / "latest").symlink_to(copied)
    assert regplug.load(tmp_path / "latest").out_dim == 24


def test_dotfiles_and_a_readme_beside_the_bundle_are_never_opened(copied):
    os.mkfifo(copied / "README.md")  # would hang whoever opens it
    os.mkfifo(copied / ".gitattributes")
    (copied / ".git").mkdir()
    assert regplug.load(copied).out_dim == 24


def test_a_socket_in_place_of_a_file_is_refused(copied):
    import socket

    (copied / WEIGHTS).unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(copied, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/{WEIGHTS}")  # a socket's path has a short limit
        os.close(here)
        with pytest.raises(regplug.BundleError, match=r"weights.safetensors: not a regular file\.$"):
            regplug.load(copied)


def test_a_reader_beside_a_writer_sees_the_old_or_the_new_bundle_whole(bundle, tmp_path):
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
