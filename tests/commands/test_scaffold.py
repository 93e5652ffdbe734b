"""`regplug new`: the package that it writes installs and passes its tests unchanged."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from support.battery import in_battery
from support.commands import run_command
from support.distributions import write_distribution
from support.forked_python import ForkedPython

import regplug
from regplug.commands.main import group
from regplug.commands.new.scaffold import names_of, write_plugin
from regplug.conformance import all_backbone_checks, all_checks

BIN = Path(sys.executable).parent


def run(command, folder, site, python=None):
    """What a command prints; with ``python`` it is a module and its arguments, run in a fork."""
    env = {**os.environ, "PYTHONPATH": str(site), "PATH": f"{BIN}:{os.environ['PATH']}"}
    if python is None:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    else:
        done = python.run(["-m", *command], folder, env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python() -> Iterator[ForkedPython]:
    """Python that has imported what the commands need, but nothing of regplug, whose asserts pytest rewrites."""
    process = ForkedPython("import torch, torch._dynamo")
    yield process
    process.close()


KINDS = ("readout", "backbone", "film", "backend")
COMPILER = {True: [], False: ["--compiler", "eager"]}
COMMON = {".gitignore", "README.md", "__init__.py", "pyproject.toml", "test.yml"}


@pytest.fixture(
    scope="module",
    params=[(), *in_battery(("backbone",), ("film",), ("backend",)), pytest.param(KINDS, marks=pytest.mark.packaging)],
    ids=lambda kinds: "-".join(kinds) or "none",
)
def kinds(request):
    return request.param


@pytest.fixture(scope="module")
def made(tmp_path_factory, kinds):
    """A new plugin, and the folder that it is installed in: by pip if it has all kinds, else as pip would."""
    folder = tmp_path_factory.mktemp("new")
    command = ["new", "acme-readouts", *(f"--{kind}" for kind in kinds)]
    package, site = folder / "acme-readouts", folder / "site"
    if kinds == KINDS:
        run(["regplug", *command], folder, "")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        run([*pip, "--target", site, package], folder, site)
    else:
        command[1] = package
        code, _, err = run_command(*command)
        assert code == 0, err
        install_by_hand(package, site)
    return package, site


def install_by_hand(package, site):
    """Write what pip leaves of the package into ``site``."""
    text = (package / "pyproject.toml").read_text()
    groups = re.findall(r"^\[project\.entry-points\.(\w+)\]\n((?:.+ = .+\n)+)", text, re.MULTILINE)
    points = {group: dict(line.split(" = ") for line in lines.replace('"', "").splitlines()) for group, lines in groups}
    assert points
    modules = {str(path.relative_to(package)): path.read_text() for path in (package / "acme_readouts").rglob("*.py")}
    write_distribution(site, "acme-readouts", modules, points, version="0.1.0")


@pytest.mark.slow
def test_its_own_tests_pass_and_run_every_check(made, kinds, python):
    package, site = made
    out = run(["pytest", "-q", "-p", "no:cacheprovider", "-W", "error"], package, site, python)
    passed = int(re.search(r"(\d+) passed", out)[1])
    skipped = re.search(r"(\d+) skipped", out)
    of_readouts = len(all_checks(["one"])) + 1  # and one test of its own meaning
    wanted = sum(len(all_backbone_checks()) + 2 if kind == "backbone" else of_readouts for kind in kinds or ["readout"])
    assert passed + int(skipped[1] if skipped else 0) == wanted
    assert "failed" not in out


@pytest.mark.parametrize(
    "kinds",
    [pytest.param((), marks=pytest.mark.slow), pytest.param(KINDS, marks=pytest.mark.packaging)],
    indirect=True,
    ids=["none", "all"],
)
def test_the_commands_of_its_ci_and_of_its_readme_answer(made, python):
    package, site = made
    readme = (package / "README.md").read_text()
    ci = yaml.safe_load((package / ".github" / "workflows" / "test.yml").read_text())
    steps = [step["run"] for step in ci["jobs"]["test"]["steps"] if "run" in step]
    assert steps[:2] == ["pip install \"$REGPLUG\" '.[test]'", "pytest"]
    assert ci["env"]["REGPLUG"] == "${{ vars.REGPLUG || 'regplug' }}"
    assert "$ pip install \"$REGPLUG\" -e '.[test]'\n" in readme
    for command in steps[2:]:  # CI compiles; tracing is enough here
        words = [*command.split(), *COMPILER[" --backbone " in command], "--json"]
        results = json.loads(run(words, package, site, python))["checks"]
        assert {result["verdict"] for result in results} <= {"passed", "not applicable"}
    for command, answer in re.findall(r"^\$ (regplug (?!check).+)\n(\d*)", readme, re.M):
        out = run(command.split(), package, site, python)
        assert answer in out


def test_it_has_no_placeholders_and_ruff_accepts_it(made, kinds):
    package, site = made
    files = [file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    offered = kinds or ("readout",)
    own = {name for kind in offered for name in (f"{kind}.py", f"test_{kind}.py")}
    light = {"plugin.py"} if {*offered} - {"readout"} else set()
    # files that the commands of README and CI wrote are not in the package
    found = {file.name for file in files if "bundle" not in file.parts and file.suffix != ".xml"}
    assert found == COMMON | own | light
    for file in files:
        if file.suffix in (".py", ".toml", ".md", ".yml"):
            assert not re.search(r"\$\w|TODO", file.read_text().replace("${{", "").replace("$REGPLUG", ""))
    run(
        [BIN / "ruff", "check", "--isolated", "--select", "E,F,W,I,UP,B", "--line-length", "120", package],
        package,
        site,
    )
    run([BIN / "ruff", "format", "--isolated", "--check", "--line-length", "120", package], package, site)


def test_its_ci_runs_actions_by_commit_may_only_read_keeps_no_credentials_and_ends(made):
    package, _ = made
    workflow = yaml.safe_load((package / ".github" / "workflows" / "test.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert 0 < job["timeout-minutes"] <= 60
        used = [step for step in job["steps"] if "uses" in step]
        assert [step["uses"].partition("@")[0] for step in used] == ["actions/checkout", "actions/setup-python"]
        assert used[0]["with"]["persist-credentials"] is False
    lines = [line for line in (package / ".github/workflows/test.yml").read_text().splitlines() if "uses:" in line]
    assert len(lines) == 2
    assert [line for line in lines if not re.fullmatch(r" *- uses: [\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


def test_the_names_follow_from_the_folders_name(tmp_path):
    assert vars(names_of(tmp_path / "regplug-two-words")) == {
        "distribution": "regplug-two-words",
        "package": "regplug_two_words",
        "strategy": "two-words",
        "readout_class": "TwoWordsReadout",
    }
    for folder in ("acme-readouts", "acme-backbone", "acme-films", "acme-backend", "regplug-acme"):
        assert names_of(tmp_path / folder).strategy == "acme"
    assert names_of(tmp_path / "acme-readouts", "top-two").readout_class == "TopTwoReadout"


@pytest.mark.parametrize(
    ("name", "strategy", "said"),
    [
        (
            "Acme Readouts",
            None,
            "distribution: expected lower-case letters, digits and '-', as in 'acme-readouts', got",
        ),
        ("Acme", None, "got 'Acme'"),
        ("9lives", None, "got '9lives'"),
        ("acme_x", None, "got 'acme_x'"),
        ("-acme", None, "got '-acme'"),
        ("acme\nx", None, r"got 'acme\nx'"),
        ("ünder", None, "got 'ünder'"),
        ("torch", None, "distribution 'torch': expected a new package, got 'torch', which Python knows."),
        ("json", None, "got 'json', which Python knows."),
        ("class", None, "got 'class', which Python knows."),
        ("acme", "pool", "strategy 'pool': expected a new name, got a built-in; use --strategy NAME."),
        ("mean-readout", None, "strategy 'mean': expected a new name, got a built-in"),
        ("acme", "Two Words", "strategy: expected lower-case letters, digits and '-', as in 'acme', got 'Two Words'."),
        ("acme", "", "got ''"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_and_nothing_is_written(tmp_path, name, strategy, said):
    with pytest.raises(regplug.SpecError) as caught:
        names_of(tmp_path / name, strategy)
    assert said in str(caught.value)
    chosen = [] if strategy is None else ["--strategy", strategy]
    done = CliRunner().invoke(group, ["new", *chosen, "--", str(tmp_path / name)])
    assert isinstance(done.exception, regplug.SpecError)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_kept(tmp_path):
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "acme")
    for place, said in (("acme", "got one that holds mine.txt."), ("file", "got a file"), ("link", "got a file")):
        done = CliRunner().invoke(group, ["new", str(tmp_path / place)])
        assert done.exit_code == 2
        assert said in done.output
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["acme", "file", "link", "mine.txt"]


def test_an_empty_folder_will_do_and_a_second_time_it_will_not(tmp_path):
    (tmp_path / "acme").mkdir()
    done = CliRunner().invoke(group, ["new", str(tmp_path / "acme"), "--json"])
    said = json.loads(done.output)
    assert (said["schema"], said["strategy"]) == ("regplug.new/1", "acme")
    assert all((tmp_path / "acme" / file).is_file() for file in said["files"])
    with pytest.raises(regplug.ExportError, match="expected a new or empty folder"):
        write_plugin(tmp_path / "acme", names_of(tmp_path / "acme"))


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "acme"
    with pytest.raises(regplug.ExportError, match=r"cannot be written: Not a directory; nothing was changed"):
        write_plugin(place, names_of(place))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
