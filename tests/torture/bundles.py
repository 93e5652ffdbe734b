"""Real bundles of a few kilobytes each, and which version is at a path after something went wrong."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import regplug
from regplug.errors import BundleError
from regplug.format.read_bundle import read_bundle

USER_FILES = {"README.md": b"# mine\n" * 20, ".gitattributes": b"*.pt lfs\n"}


def make_bundle(place: Path, seed: int) -> dict[str, bytes]:
    """Export a data-only bundle with the weights of this seed; gives its files."""
    spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=24, compressed_dim=6)
    torch.manual_seed(seed)
    regplug.export(spec, spec.build(), place, backends=[])
    return content(place)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def write_plainly(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def version_at(place: Path, versions: dict[str, dict[str, bytes]]) -> str:
    """The version that the loader finds there: its name, "nothing", "refused" or "mixture"."""
    if not place.exists():
        return "nothing"
    try:
        read_bundle(place)
    except BundleError:
        return "refused"
    found = content(place)
    return next((name for name, files in versions.items() if files == found), "mixture")


@contextmanager
def in_memory(work: Path) -> Iterator[Path]:
    """A folder in memory if there is one: on a real disk syncs take most of the time, and do not matter here."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else work) as folder:
        yield Path(folder)


def leftovers(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.rglob("*") if ".regplug-" in entry.name)
