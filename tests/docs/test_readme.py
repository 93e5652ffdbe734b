"""The README and the pages in docs: every block runs, and prints what the page says."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import backbones_page
import checks_page
import cli_page
import pytest
import readouts_page
from support.forked_python import ForkedPython
from torture.__main__ import PARTS, write_page

import regplug
from regplug.conformance import all_backbone_checks, all_checks
from regplug.registry import hookspecs

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(?:#|//) (\S+\.\w+)\n")


# each page, the file that completes the plugin in it, how many outputs it states, and what it needs
COMPILER, PACKAGING, SLOW = pytest.mark.compiler, pytest.mark.packaging, pytest.mark.slow
PAGES = [
    pytest.param("README.md", "acme_readouts.py", 9, marks=[COMPILER, PACKAGING]),
    pytest.param("docs/plugins.md", "pyproject.toml", 8, marks=PACKAGING),
    pytest.param("docs/programs.md", None, 13, marks=COMPILER),
    pytest.param("docs/film.md", None, 1),
    pytest.param("docs/readouts.md", None, 7, marks=SLOW),
    pytest.param("docs/evidence.md", None, 1, marks=SLOW),
    pytest.param("docs/effect.md", None, 1, marks=SLOW),
    pytest.param("docs/run.md", None, 5, marks=SLOW),
    pytest.param("docs/backbones.md", None, 19, marks=COMPILER),
    pytest.param("docs/training.md", None, 10, marks=SLOW),
]
STRICT = "import warnings; warnings.simplefilter('error')\n"


def matches(said, got):
    """Whether the output is what the page says; dots on a line or at its end match anything."""
    pattern = re.escape(said.strip()).replace(re.escape("..."), ".*")
    return re.fullmatch(pattern, got.strip(), re.DOTALL) is not None


@pytest.fixture(scope="module")
def python() -> Iterator[ForkedPython]:
    """Python that has imported what most blocks need, but no plugin."""
    process = ForkedPython("import timm, torch, torch._dynamo, regplug.bundle.export")
    yield process
    process.close()


def run(command, folder, env, python):
    """What a command prints; regplug and a Python file need no interpreter of their own."""
    if isinstance(command, str) and command.startswith("regplug ") and not set(command) & set("|&;<>$"):
        done = python.run(["-m", *shlex.split(command)], folder, env)
    elif isinstance(command, str) and re.match(r"python \w+\.py ", command):
        run_file = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
        done = python.run(["-c", run_file, *shlex.split(command)[1:]], folder, env)
    elif command[0] == "-c":
        done = python.run(command, folder, env)
    else:
        shell = isinstance(command, str)
        done = subprocess.run(command, shell=shell, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("said", "got"), [("a\n...", "a\nb\nc"), ("x ...", "x 1"), ("a", "a\n")])
def test_the_comparison_accepts_the_same_output(said, got):
    assert matches(said, got)


@pytest.mark.parametrize(("said", "got"), [("384", "385"), ("a\n...", "b\nc"), ("a", "a\nb"), ("a.c", "abc")])
def test_the_comparison_detects_another_output(said, got):
    assert not matches(said, got)


@pytest.mark.parametrize(("page", "last_file", "outputs"), PAGES)
def test_every_block_of_a_page_runs_and_prints_what_it_says(tmp_path, python, page, last_file, outputs):
    site = tmp_path / "site"
    tools = str(Path(sys.executable).parent)
    paths = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": paths, "PATH": f"{tools}:{os.environ['PATH']}", "CMAKE_GENERATOR": "Ninja"}
    output, checked = "", 0
    for language, text in BLOCK.findall((ROOT / page).read_text()):
        name = FILE.match(text)
        if name:
            (tmp_path / name[1]).write_text(text)
            if name[1] == last_file:
                pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
                run([*pip, "--target", site, tmp_path], tmp_path, env, python)
        elif language == "python":
            output = run(["-c", STRICT + text], tmp_path, env, python)
        elif language == "text":
            assert matches(text, output)
            checked += 1
        elif language == "console":
            for command, said in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                output = run(command, tmp_path, env, python)
                assert matches(said, output), output
                checked += 1
        else:
            pytest.fail(f"a block in {language!r} that nobody runs")
    assert checked == outputs


@pytest.mark.slow
@pytest.mark.parametrize("plugin", ["timm", "transformers", "nvsubquadratic"])
def test_the_python_of_a_backbone_plugins_readme_runs(tmp_path, python, plugin):
    text = (ROOT / "plugins" / f"regplug-{plugin}" / "README.md").read_text()
    blocks = [block for language, block in BLOCK.findall(text) if language == "python"]
    assert blocks
    run(["-c", "\n".join(blocks)], tmp_path, os.environ, python)


def test_the_indented_commands_are_targets_of_the_makefile():
    commands = re.findall(r"^    make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert commands == ["demo", "test"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(commands) <= set(targets)


@pytest.mark.slow
def test_the_table_of_readouts_is_what_the_registry_says():
    names = [entry.full_name for entry in regplug.default_registry().readout_entries()]
    said = readouts_page.TABLE.search(readouts_page.PAGE.read_text())[0]
    assert said == readouts_page.table(names), "run `python tests/docs/readouts_page.py`"
    assert readouts_page.table(names[1:]) != said


@pytest.mark.slow
def test_the_table_of_backbones_is_what_the_plugins_say():
    found = list(backbones_page.layouts())
    said = backbones_page.TABLE.search(backbones_page.PAGE.read_text())[0]
    assert said == backbones_page.table(found), "run `python tests/docs/backbones_page.py`"
    assert backbones_page.table(found[1:]) != said


def test_the_commands_are_what_the_command_line_says():
    said = cli_page.COMMANDS.search(cli_page.PAGE.read_text())[0]
    assert said == cli_page.commands(), "run `python tests/docs/cli_page.py`"
    assert all(f"## regplug {name}\n" in said for name in ("list", "check", "doctor", "new", "cache prune"))


def test_the_table_of_a_backbones_checks_is_what_the_checks_say():
    said = checks_page.BACKBONES.search(checks_page.PAGE.read_text())[0]
    assert said == checks_page.table(all_backbone_checks()), "run `python tests/docs/checks_page.py`"


def test_the_table_of_checks_is_what_the_checks_say():
    checks = all_checks(["BACKEND"])
    said = checks_page.TABLE.search(checks_page.PAGE.read_text())[0]
    assert said == checks_page.table(checks), "run `python tests/docs/checks_page.py`"
    assert checks_page.table(checks[1:]) != said


def test_the_hooks_are_shown_with_their_signatures():
    page = (ROOT / "docs" / "plugins.md").read_text()
    shown = dict(re.findall(r"^def (regplug_\w+)(.+): \.\.\.$", page, re.MULTILINE))
    assert shown == {
        name: str(inspect.signature(getattr(hookspecs, name))).replace("'", "") for name in hookspecs.HOOKS
    }


def test_the_security_page_names_every_part_of_the_battery_and_tests_that_there_are():
    page = (ROOT / "docs" / "SECURITY.md").read_text()
    promises = page.partition("## What is promised")[2].partition("<!-- figures -->")[0]
    cells = [line.split(" | ")[-1] for line in promises.splitlines() if line.startswith("| **")]
    assert len(cells) >= 9
    named = {word for cell in cells for word in re.findall(r"`(\w+)`", cell)}
    assert named == set(PARTS)
    files = {word for cell in cells for word in re.findall(r"`(tests/[\w./]+)`", cell)}
    assert all((ROOT / file).exists() for file in files)
    assert all(any(word in cell for word in (*named, *files, "`make test`")) for cell in cells)


def test_the_security_page_shows_the_figures_of_every_part_and_none_that_is_bad():
    text = (ROOT / "docs" / "SECURITY.md").read_text()
    table = text.partition("<!-- figures -->\n")[2].partition("<!-- end of figures -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if "| `" in line]
    assert {row[0] for row in rows} == {f"`{part}`" for part in PARTS}
    for row in rows:
        part, _, tried, bad, _, _ = row
        assert int(tried.replace(",", "")) > 0
        counts = [int(count) for count in re.findall(r" (\d+)(?:,|$)", bad)]
        assert counts
        most = int(tried.replace(",", "")) // 20 if part == "`mutation`" else 0
        assert max(counts) <= most, row


def test_a_page_without_the_marks_is_left_alone_and_a_note_of_many_lines_keeps_a_row_one_line(tmp_path):
    row = {"part": "x", "what": "y", "tried": 2, "bad": {"z": 0}, "seed": None, "seconds": 1, "note": "one\ntwo"}
    page = tmp_path / "page.md"
    page.write_text("before\n")
    with pytest.raises(SystemExit, match="expected the marks"):
        write_page(page, [row])
    assert page.read_text() == "before\n"
    page.write_text("before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n")
    write_page(page, [row])
    assert page.read_text().startswith("before\n<!-- figures -->\nThe last run: ")
    assert page.read_text().endswith("\n| `x` | y (one) | 2 | z 0 |  | 1 |\n<!-- end of figures -->\nafter\n")


def test_links_lead_to_files():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
