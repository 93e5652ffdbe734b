"""Damaged metadata of other distributions: a plugin that works is found, and each fault is reported on one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.forked_python import ForkedPython

from regplug.bundle.describe import storable
from regplug.commands.doctor.metadata import check_metadata
from regplug.registry.distributions import installed

Python = Callable[..., subprocess.CompletedProcess[str]]

MODULE = """
import torch

class Last(torch.nn.Module):
    def __init__(self, hidden_dim: int):
        super().__init__()
        self.norm = torch.nn.LayerNorm(hidden_dim)

    def forward(self, registers):
        return self.norm(registers[:, -1])
"""
METADATA = "Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n"
POINTS = "[regplug_readouts_v1]\nacme-last = acme:Last\n"
WIDTH = ["cond-dim", "acme-last", "--num-registers", "2", "--hidden-dim", "3"]


def make(folder: Path, name: str = "acme-1.0.dist-info", **files: str | bytes) -> Path:
    """A distribution's metadata; ``METADATA`` and ``entry_points`` are a good plugin's where they are not given."""
    info = folder / name
    info.mkdir(parents=True)
    for word, content in {"METADATA": METADATA, "entry_points": POINTS, **files}.items():
        path = info / (word if word.isupper() else f"{word}.txt")
        if content:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "acme.py").write_text(MODULE)
    return info


def run(*words: str, path: list[Path], **env: str) -> subprocess.CompletedProcess[str]:
    """The real command, with folders on the path."""
    variables = {**os.environ, **env, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-m", "regplug", *words]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, cwd=path[0])


def listed(*path: Path) -> dict[str, Any]:
    """The plugin acme as ``regplug list`` shows it."""
    done = run("list", "--json", path=[*path])
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert "mean" in {one["name"] for one in said["strategies"]}
    [acme] = [one for one in said["plugins"] if one["distribution"] == "acme"]
    return {**acme, "names": [one["name"] for one in said["strategies"] if one["distribution"] == "acme"]}


@pytest.mark.parametrize(
    ("files", "version"),
    [
        pytest.param({"entry_points": b"\xef\xbb\xbf" + POINTS.encode()}, "1.0", id="byte-order-mark"),
        pytest.param({"entry_points": POINTS.encode("utf-16")}, "1.0", id="utf-16"),
        pytest.param({"entry_points": b"# caf\xe9\n" + POINTS.encode()}, "1.0", id="latin-1"),
        pytest.param({"entry_points": POINTS.replace("\n", "\r\n")}, "1.0", id="lines-of-windows"),
        pytest.param({"METADATA": b"\xef\xbb\xbf" + METADATA.encode()}, "1.0", id="mark-in-the-metadata"),
        pytest.param({"METADATA": METADATA.encode() + b"Author: Jos\xe9\n"}, "1.0", id="latin-1-in-the-metadata"),
        pytest.param({"METADATA": METADATA.replace("\n", "\r\n") + "\r\nName: zoo\r\n"}, "1.0", id="windows-metadata"),
        pytest.param({"METADATA": METADATA.replace("1.0", "banana")}, "banana", id="a-version-that-is-none"),
        pytest.param({"METADATA": "Name: acme\n"}, "1.0", id="no-version"),
        pytest.param({"METADATA": "Version: 2.0\n"}, "2.0", id="no-name"),
        pytest.param({"METADATA": ""}, "1.0", id="no-metadata"),
    ],
)
def test_a_working_plugin_is_listed_in_spite_of_damaged_metadata(tmp_path: Path, files: Any, version: str) -> None:
    make(tmp_path, **files)
    acme = listed(tmp_path)
    assert (acme["version"], acme["status"], acme["names"]) == (version, "ok", ["acme-last"])
    is_nameless = "Name: acme" not in str(files.get("METADATA", METADATA))
    assert [note.partition(";")[0] for note in acme["notes"]] == ["its metadata states no name"] * is_nameless


def test_an_invalid_line_is_named_and_hides_no_other(tmp_path: Path) -> None:
    make(tmp_path, entry_points=f"{POINTS}oops\n[console_scripts]\nalso no line\n")
    acme = listed(tmp_path)
    assert (acme["status"], acme["names"]) == ("ok", ["acme-last"])
    assert acme["notes"] == ["entry_points.txt: expected 'name = module:attr', got 'oops'; that line is ignored"]
    assert "'oops'; that line is ignored" in run("list", path=[tmp_path]).stdout


def test_a_plugin_with_only_invalid_lines_is_broken(tmp_path: Path) -> None:
    make(tmp_path, entry_points="[regplug_v1]\noops\n")
    acme = listed(tmp_path)
    assert acme["status"] == "broken"
    assert "expected 'name = module:attr', got 'oops'" in acme["error"]


def test_of_two_copies_in_one_folder_the_newest_counts_and_the_other_is_named(tmp_path: Path) -> None:
    for version in ("1.9", "1.10", "1.10rc1"):
        make(tmp_path, f"acme-{version}.dist-info", METADATA=METADATA.replace("1.0", version))
    acme = listed(tmp_path)
    assert acme["version"] == "1.10"
    assert acme["notes"][0].startswith(f"1.10 in {tmp_path / 'acme-1.10.dist-info'} is used, not ")
    assert {f"1.9 in {tmp_path / 'acme-1.9.dist-info'}", f"1.10rc1 in {tmp_path / 'acme-1.10rc1.dist-info'}"} == set(
        acme["notes"][0].partition(", not ")[2].split(", ")
    )


def test_an_earlier_copy_without_metadata_does_not_hide_a_whole_one(tmp_path: Path) -> None:
    make(tmp_path / "first", "acme-3.0.dist-info", METADATA="", entry_points="", RECORD="acme.py,,\n")
    make(tmp_path / "second")
    acme = listed(tmp_path / "first", tmp_path / "second")
    assert (acme["version"], acme["names"]) == ("1.0", ["acme-last"])


def test_a_folder_that_pip_is_about_to_delete_is_not_a_copy(tmp_path: Path) -> None:
    make(tmp_path)
    make(tmp_path, "~cme-0.9.dist-info", METADATA=METADATA.replace("1.0", "0.9"))
    acme = listed(tmp_path)
    assert (acme["version"], acme["notes"]) == ("1.0", [])


def test_a_folder_that_is_twice_on_the_path_is_not_a_copy(tmp_path: Path) -> None:
    make(tmp_path / "site")
    (tmp_path / "link").symlink_to(tmp_path / "site")
    assert listed(tmp_path / "site", tmp_path / "link")["notes"] == []


def test_plugins_in_a_zip_file_and_in_eggs_are_found(tmp_path: Path) -> None:
    archive, egg = tmp_path / "site.zip", tmp_path / "acme-1.0-py3.egg"
    with zipfile.ZipFile(archive, "w") as file:
        for name, text in {"METADATA": METADATA, "entry_points.txt": POINTS}.items():
            file.writestr(f"acme-1.0.dist-info/{name}", text)
    acme = listed(archive.parent, archive)
    assert (acme["version"], acme["names"], acme["notes"]) == ("1.0", ["acme-last"], [])
    archive.unlink()
    (egg / "EGG-INFO").mkdir(parents=True)
    (egg / "EGG-INFO" / "PKG-INFO").write_text("Summary: nameless\n")
    (egg / "EGG-INFO" / "entry_points.txt").write_text(POINTS)
    acme = listed(tmp_path, egg)
    assert (acme["version"], acme["names"]) == ("1.0", ["acme-last"])


def test_a_third_party_finder_that_fails_hides_no_plugin(run_python: Python, tmp_path: Path) -> None:
    make(tmp_path)
    code = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, *words): return None\n"
        "    def find_distributions(self, context): raise OSError('a device that fails')\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import regplug; print('acme-last' in regplug.strategies())"
    )
    assert run_python(code, [tmp_path]).stdout == "True\n"


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin that works, among distributions with damaged metadata, some of them of torch."""
    site = tmp_path_factory.mktemp("crowd")
    make(site, METADATA=METADATA.replace("1.0", "1.0+d2026.abc~x"), RECORD="acme.py,,\n")
    others = {"entry_points": "[console_scripts]\nx = x:y\n"}
    make(site, "marked-1.0.dist-info", METADATA="Name: marked\nVersion: 1\n", entry_points=b"\xef\xbb\xbf[x]\ny = z\n")
    make(site, "latin-1.0.dist-info", METADATA=b"Name: latin\nAuthor: \xe9\n", entry_points=b"[x]\n# \xe9\ny = z\n")
    make(site, "broken-1.0.dist-info", METADATA="Name: broken\nVersion: 1\n", entry_points="[x]\nno equals\n")
    make(site, "nameless-1.0.dist-info", METADATA="Version: 1\n", RECORD="acme.py,,\n", **others)
    make(site, "torch-9.9.dist-info", METADATA="", entry_points="", RECORD="torch/__init__.py,,\nacme.py,,\n")
    make(site, "~orch-1.1.dist-info", METADATA="Name: torch\nVersion: 1.1\n", RECORD="torch/__init__.py,,\nacme.py,,\n")
    make(site, "~cme-0.5.dist-info", METADATA=METADATA.replace("1.0", "0.5"), RECORD="acme.py,,\n")
    return site


def test_a_readout_is_exported_among_them_with_the_provenance_of_the_installed_copies(
    with_torch: ForkedPython, crowd: Path, tmp_path: Path
) -> None:
    done = run(*WIDTH, path=[crowd])
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert done.stderr.startswith("warning: the metadata of a distribution cannot be read (")
    assert done.stderr.count("\n") == 1
    words = ["-m", "regplug", "export", *WIDTH[1:], "--backend", "torchscript", "-o", str(tmp_path / "b")]
    done = with_torch.run(words, crowd, os.environ | {"PYTHONPATH": str(crowd)})
    assert done.returncode == 0, done.stderr
    packages = json.loads((tmp_path / "b" / "manifest.json").read_text())["provenance"]["packages"]
    assert (packages["acme"], packages["nameless"]) == ("1.0+d2026.abc_x", "1")
    assert "torch" not in packages


def test_the_doctor_has_a_line_for_each_of_them(crowd: Path) -> None:
    said = "\n".join(finding.message for finding in check_metadata([str(crowd)]))
    for words in (
        "acme-1.0.dist-info: expected a version, got '1.0+d2026.abc~x'",
        "marked-1.0.dist-info/entry_points.txt: expected no byte order mark",
        "latin-1.0.dist-info: states no Version; taken as '1.0'",
        "latin-1.0.dist-info/entry_points.txt: expected text in UTF-8, which stops all that lists entry points",
        "broken-1.0.dist-info/entry_points.txt: line 2: expected 'name = module:attr', got 'no equals'",
        "nameless-1.0.dist-info: states no Name that can be used; taken as 'nameless'",
        "torch-9.9.dist-info: no METADATA",
        "~orch-1.1.dist-info: left by an interrupted removal, and ignored",
        "~cme-0.5.dist-info: left by an interrupted removal, and ignored",
    ):
        assert words in said


@pytest.mark.slow
def test_the_doctor_blames_neither_a_plugin_that_works_nor_torch(crowd: Path) -> None:
    others = ["digits", "nvsubquadratic", "onnx", "timm", "transformers", "zoo"]
    disabled = ",".join(f"regplug-{name}" for name in others)
    report = json.loads(run("doctor", "--json", path=[crowd], REGPLUG_DISABLE=disabled).stdout)
    status = {one["distribution"]: one["status"] for one in report["plugins"]}
    assert (status["acme"], status["regplug"]) == ("warning", "ok")  # the version of acme is invalid
    assert {one["name"]: one["level"] for one in report["environment"]}["torch"] == "ok"


def test_a_folder_on_the_path_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    [finding] = check_metadata([str(tmp_path / "loop"), str(tmp_path / "no-such-folder")])
    assert finding.message.startswith(f"{tmp_path / 'loop'}: on the search path, but cannot be listed (")


def test_each_distribution_is_counted_once(monkeypatch: pytest.MonkeyPatch, crowd: Path) -> None:
    monkeypatch.syspath_prepend(str(crowd))
    names = [one.name for one in installed()]
    assert len(names) == len(set(names))
    [torch] = [one for one in installed() if one.name == "torch"]
    assert torch.version not in ("9.9", "1.1")


@pytest.mark.parametrize(
    ("version", "stored"),
    [("1.0+cpu", "1.0+cpu"), ("1.0+d2026.abc~x", "1.0+d2026.abc_x"), ("", "unknown"), ("1" * 200, "1" * 128)],
)
def test_a_bundle_stores_an_underscore_for_invalid_characters_of_a_version(version: str, stored: str) -> None:
    assert storable(version) == stored
