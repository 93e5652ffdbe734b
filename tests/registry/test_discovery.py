"""Entry points of installed packages, found by a new interpreter."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import pytest
from support.strategies import BUILT_IN

from regplug.registry.discovery import discover
from regplug.registry.distributions import Installed, normalise

Installer = Callable[..., Path]
Python = Callable[..., subprocess.CompletedProcess[str]]


# no import of regplug: two lines of entry points are the whole plugin
ACME = """
import os, pathlib
if "CANARY" in os.environ:
    pathlib.Path(os.environ["CANARY"]).write_text("imported")
from torch import nn

class Attend(nn.Module):
    def __init__(self, num_registers: int, hidden_dim: int, width: int):
        super().__init__()
        self.score = nn.Linear(hidden_dim, 1)
        self.value = nn.Linear(hidden_dim, width)

    def forward(self, registers):
        return (self.score(registers).softmax(1) * self.value(registers)).sum(1)

class Largest(nn.Module):
    def forward(self, registers):
        return registers.amax(1)
"""

ZOO = """
import os, pathlib
if "CANARY" in os.environ:
    pathlib.Path(os.environ["CANARY"]).write_text("imported")
import regplug

@regplug.hookimpl
def regplug_readouts():
    return [regplug.ReadoutEntry("last", "zoo_models:Last", sizes={"in_features": "hidden_dim"})]

@regplug.hookimpl
def regplug_backbones():
    return [regplug.BackboneEntry("zoo-vit", "zoo_models:ViT", layout="zoo_models:layout", readouts=("last",))]
"""

ZOO_MODELS = """
from torch import nn

class Last(nn.Linear):
    def __init__(self, in_features: int):
        super().__init__(in_features, 5)

    def forward(self, registers):
        return super().forward(registers[:, -1])

class Lined(Last):
    pass
"""

GROUP = "regplug_readouts_v1"


@pytest.fixture(scope="module")
def acme(install_plugin: Installer) -> Path:
    lines = {"attend": "acme_readouts:Attend", "largest": "acme_readouts:Largest"}
    return install_plugin("Acme_Readouts", {"acme_readouts.py": ACME}, {GROUP: lines}, version="2.3")


@pytest.fixture(scope="module")
def zoo(install_plugin: Installer) -> Path:
    """Both groups in one distribution."""
    points = {GROUP: {"lined": "zoo_models:Lined"}, "regplug_v1": {"zoo": "zoo_plugin"}}
    return install_plugin("zoo", {"zoo_plugin.py": ZOO, "zoo_models.py": ZOO_MODELS}, points)


@pytest.fixture(scope="module")
def leaving(install_plugin: Installer) -> Path:
    """Ends the interpreter with success when it is imported."""
    points = {GROUP: {"vanish": "leaving_models:Vanish"}, "regplug_v1": {"leaving": "leaving"}}
    return install_plugin("leaving", {"leaving.py": "import sys; sys.exit(0)"}, points)


@pytest.fixture(scope="module")
def future(install_plugin: Installer) -> Path:
    """Speaks protocol 2 only."""
    points = {"regplug_v2": {"future": "future"}, "regplug_readouts_v2": {"soon": "future:Soon"}}
    return install_plugin("future", {"future.py": "raise RuntimeError('imported')"}, points)


@pytest.fixture(scope="module")
def adopting(install_plugin: Installer) -> Path:
    """Names a class of nvSubquadratic, unchanged, and has no module."""
    readouts = {"nv-compress": "nvsubquadratic.modules.film:RegisterCompressConcat"}
    return install_plugin("adopting", {}, {GROUP: readouts})


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    """What the code printed as JSON."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LIST = """
import json, sys, regplug
names = regplug.strategies()
records = {r.distribution: [r.version, r.status, str(r.error)] for r in regplug.default_registry().plugins()}
listed = {"names": names, "backbones": regplug.backbones(), "records": records, "imported": sorted(sys.modules)}
print(json.dumps(listed))
"""


def test_two_lines_of_entry_points_make_two_strategies(run_python: Python, run_with_torch: Python, acme: Path) -> None:
    listed = answer(run_python(LIST, [acme]))
    assert {*BUILT_IN, "attend", "largest"} <= set(listed["names"])
    assert listed["records"]["acme-readouts"] == ["2.3", "ok", "None"]
    code = (
        "import json, torch, regplug\n"
        "spec = regplug.resolve('attend', num_registers=4, hidden_dim=8, width=6)\n"
        "answer = spec.build()(torch.zeros(2, 4, 8))\n"
        "largest = regplug.resolve('acme_readouts:largest', num_registers=4, hidden_dim=8)\n"
        "print(json.dumps([spec.strategy, spec.cond_dim, list(answer.shape), largest.cond_dim,\n"
        "                  spec.entry.provenance.version]))"
    )
    assert answer(run_with_torch(code, [acme])) == ["acme-readouts:attend", 6, [2, 6], 8, "2.3"]


def test_both_groups_of_one_distribution_are_one_plugin(run_python: Python, run_with_torch: Python, zoo: Path) -> None:
    listed = answer(run_python(LIST, [zoo]))
    assert {"last", "lined"} <= set(listed["names"])
    assert "zoo-vit" in listed["backbones"]
    code = (
        "import json, regplug\n"
        "registry = regplug.default_registry()\n"
        "width = registry.resolve('last', num_registers=4, hidden_dim=8).cond_dim\n"
        "registry.unregister('zoo')\n"
        "print(json.dumps([width, registry.strategies(), registry.backbones()]))"
    )
    width, names, backbones = answer(run_with_torch(code, [zoo]))
    assert width == 5
    assert not {"last", "lined"} & set(names)
    assert "zoo-vit" not in backbones


def test_listing_imports_neither_torch_nor_the_module_of_a_readout(run_python: Python, acme: Path, zoo: Path) -> None:
    listed = answer(run_python(LIST, [acme, zoo]))
    assert {"attend", "last"} <= set(listed["names"])
    assert not {"torch", "numpy", "acme_readouts", "zoo_models"} & set(listed["imported"])
    assert "zoo_plugin" in listed["imported"]  # the light module with the hooks is imported


def test_importing_regplug_imports_no_plugin_and_not_even_pluggy(run_python: Python, zoo: Path) -> None:
    imported = answer(run_python("import json, sys, regplug; print(json.dumps(sorted(sys.modules)))", [zoo]))
    assert "regplug" in imported
    assert not {"torch", "pluggy", "importlib.metadata", "zoo_plugin"} & set(imported)


@pytest.mark.parametrize("disabled", ["zoo", " ZOO ,other"])
def test_a_disabled_distribution_is_blocked_before_it_is_imported(
    run_python: Python, zoo: Path, tmp_path: Path, disabled: str
) -> None:
    canary = {"CANARY": str(tmp_path / "canary")}
    listed = answer(run_python(LIST, [zoo], canary | {"REGPLUG_DISABLE": disabled}))
    assert not {"last", "lined"} & set(listed["names"])
    assert listed["records"]["zoo"] == ["1.0", "blocked", "None"]
    assert not (tmp_path / "canary").exists()
    answer(run_python(LIST, [zoo], canary))
    assert (tmp_path / "canary").read_text() == "imported"


def test_looking_up_a_built_in_imports_no_installed_plugin(run_python: Python, zoo: Path, tmp_path: Path) -> None:
    code = "import json, regplug; print(json.dumps(regplug.default_registry().readout_entry('mean').full_name))"
    assert answer(run_python(code, [zoo], {"CANARY": str(tmp_path / "canary")})) == "regplug:mean"
    assert not (tmp_path / "canary").exists()


def test_a_plugin_that_exits_at_import_does_not_end_its_host(run_python: Python, acme: Path, leaving: Path) -> None:
    listed = answer(run_python(LIST, [leaving, acme]))
    assert {*BUILT_IN, "attend"} <= set(listed["names"])
    assert "vanish" not in listed["names"]
    version, status, error = listed["records"]["leaving"]
    assert (version, status) == ("1.0", "broken")
    assert error.startswith("plugin 'leaving': expected to import 'leaving', got SystemExit: 0 (")
    assert error.endswith("/leaving.py:1)")


@pytest.mark.parametrize("name", ["vanish", "leaving:vanish"])
def test_the_name_of_a_broken_plugin_raises_with_the_cause(run_python: Python, leaving: Path, name: str) -> None:
    done = run_python(f"import regplug; regplug.resolve({name!r}, num_registers=1, hidden_dim=1)", [leaving])
    assert done.returncode == 1
    assert f"PluginError: strategy {name!r}: plugin 'leaving': expected to import" in done.stderr
    assert "SystemExit: 0" in done.stderr


def test_a_plugin_of_a_newer_protocol_is_recorded_without_an_import(run_python: Python, future: Path) -> None:
    listed = answer(run_python(LIST, [future]))
    assert listed["records"]["future"] == [
        "1.0",
        "broken",
        "plugin 'future': expected protocol 1, got 2; update regplug.",
    ]
    assert "future" not in listed["imported"]
    assert "soon" not in listed["names"]


def test_a_strict_host_refuses_a_broken_plugin(run_python: Python, future: Path) -> None:
    done = run_python(LIST, [future], {"REGPLUG_STRICT": "1"})
    assert done.returncode == 1
    assert "PluginError: plugin 'future': expected protocol 1, got 2" in done.stderr


def fake_distribution(folder: Path, name: str, entry_points: str, metadata: str | None = None) -> Path:
    """The metadata folder of an installed distribution, as it may be damaged on a disk."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(metadata or f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    return info


def test_a_malformed_file_of_an_unrelated_distribution_hides_no_plugin(
    run_python: Python, acme: Path, zoo: Path, tmp_path: Path
) -> None:
    fake_distribution(tmp_path, "unrelated", "[console_scripts]\nthis line has no equals sign\n")
    probe = run_python("from importlib.metadata import entry_points; entry_points()", [tmp_path])
    assert probe.returncode == 1  # importlib.metadata cannot read it
    listed = answer(run_python(LIST, [tmp_path, acme, zoo]))
    assert {*BUILT_IN, "attend", "last"} <= set(listed["names"])
    assert "unrelated" not in listed["records"]


def test_a_distribution_without_a_name_hides_no_plugin(run_python: Python, acme: Path, tmp_path: Path) -> None:
    info = fake_distribution(tmp_path, "nameless", "[regplug_v1]\nnameless = nameless\n")
    (info / "METADATA").unlink()  # as an interrupted removal leaves it
    listed = answer(run_python(LIST, [tmp_path, acme]))
    assert {*BUILT_IN, "attend"} <= set(listed["names"])


def test_a_distribution_without_a_version_has_that_of_its_folder(run_python: Python, tmp_path: Path) -> None:
    fake_distribution(
        tmp_path, "bare", "[regplug_readouts_v1]\nown = bare:Own\n", "Metadata-Version: 2.1\nName: bare\n"
    )
    listed = answer(run_python(LIST, [tmp_path]))
    assert listed["records"]["bare"] == ["1.0", "ok", "None"]
    assert "own" in listed["names"]


@pytest.mark.parametrize("malformed", [False, True])
def test_of_two_copies_of_a_distribution_the_first_on_the_path_counts(
    run_python: Python, tmp_path: Path, malformed: bool
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        fake_distribution(folder, "twice", f"[regplug_readouts_v1]\n{folder.name} = twice:Twice\n")
    if malformed:
        fake_distribution(folders[0], "unrelated", "[console_scripts]\nno equals sign\n")
    for path in (folders, folders[::-1]):
        names = answer(run_python(LIST, path))["names"]
        assert [name for name in ("first", "second") if name in names] == [path[0].name]


def test_two_distributions_with_one_name_are_listed_in_full(run_python: Python, acme: Path, tmp_path: Path) -> None:
    fake_distribution(tmp_path, "rival", "[regplug_readouts_v1]\nattend = rival:Attend\n")
    for path in ([acme, tmp_path], [tmp_path, acme]):
        listed = answer(run_python(LIST, path))
        assert {"acme-readouts:attend", "rival:attend"} <= set(listed["names"])
        assert "attend" not in listed["names"]
        done = run_python("import regplug; regplug.create('attend', num_registers=1, hidden_dim=1)", path)
        assert (
            "NameLookupError: strategy 'attend': offered by acme-readouts and rival; "
            "use 'acme-readouts:attend' or 'rival:attend'." in done.stderr
        )


def test_a_class_of_nvsubquadratic_is_offered_unchanged(
    run_python: Python, run_with_torch: Python, adopting: Path
) -> None:
    listed = answer(run_python(LIST, [adopting]))
    assert "nv-compress" in listed["names"]
    assert not {"torch", "nvsubquadratic"} & set(listed["imported"])
    code = (
        "import json, torch, regplug\n"
        "from nvsubquadratic.modules.film import RegisterCompressConcat\n"
        "spec = regplug.resolve('nv-compress', num_registers=14, hidden_dim=384, compressed_dim=96)\n"
        "made = spec.build()\n"
        "same = regplug.create('adopting:nv-compress', num_registers=14, hidden_dim=384, compressed_dim=96)\n"
        "print(json.dumps([spec.strategy, spec.cond_dim, type(made) is RegisterCompressConcat,\n"
        "                  type(made) is type(same), list(made(torch.zeros(2, 14, 384)).shape),\n"
        "                  sorted(made.state_dict())]))"
    )
    assert answer(run_with_torch(code, [adopting])) == [
        "adopting:nv-compress",
        14 * 96,
        True,
        True,
        [2, 14 * 96],
        ["compress.weight"],
    ]


def test_names_and_versions_are_those_that_importlib_reads_of_every_installed_distribution() -> None:
    every = list(distributions())
    assert len(every) > 20
    for one in every:
        found = Installed(one)
        assert (found.name, found.version, found.is_leftover) == (normalise(one.name), one.version, False)
    assert discover()["regplug"].version == Distribution.from_name("regplug").version


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        ("Metadata-Version: 2.1\nname:  Acme.Readouts \nVERSION:1.0+cpu\n", ("acme-readouts", "1.0+cpu")),
        ("Name: acme\nVersion: 1\n\nName: other\nVersion: 2\n", ("acme", "1")),
        ("\ufeffName: zoo\nVersion: 2\n", ("zoo", "2")),
        ("Name: acme\nSummary: of\n  Version: 3\n", ("acme", "1.0")),
        ("Name: acme\n\nVersion: 2\n", ("acme", "1.0")),
        ("Name:\nVersion: 2\n", ("folder", "2")),
        ("Name: two words\nVersion: 2\n", ("folder", "2")),
        ("Version: 2\n", ("folder", "2")),
    ],
)
def test_only_the_head_of_the_metadata_counts_and_the_folder_says_what_it_does_not(
    tmp_path: Path, metadata: str, wanted: tuple[str, str]
) -> None:
    found = Installed(Distribution.at(fake_distribution(tmp_path, "folder", "", metadata)))
    assert (found.name, found.version) == wanted


def test_a_reference_is_read_as_the_specification_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["a = acme [extra]", "b = acme : plugin", "c = acme:deep.plugin [one,two]", "d = no-module:at all"]
    fake_distribution(
        tmp_path, "acme", "\n".join(["[regplug_v1]", *lines, "[regplug_readouts_v1]", "e = acme : Attend [x]"])
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = discover()["acme"]
    assert found.modules == ["acme", "acme:plugin", "acme:deep.plugin", "no-module:at all"]
    assert found.readouts == [("e", "acme:Attend")]
