"""``regplug check``: its rows, exit codes and JUnit file, and what it refuses before it checks anything."""

import functools
import json
import re
from xml.etree import ElementTree

import pytest
from support.commands import run_command

import regplug
from regplug.conformance import CheckResult, all_checks
from regplug.conformance.junit import junit_xml
from regplug.errors import NameLookupError

FAST = ["--backend", "torchscript", "--compiler", "eager"]
READOUTS = """
from torch import nn

class OneWrongNumber(nn.Module):
    def __init__(self, width):
        super().__init__()
        print("built")
        self.width = width
    def forward(self, registers):
        return registers.sum(1)
    def flop_count(self, dim: int) -> int:
        return 123456789

class Unbuildable(nn.Module):
    def __init__(self, num_registers):
        raise RuntimeError("never\\nsecond line")
"""
WRONG = ["readouts_under_check:OneWrongNumber", "--size", "width=hidden_dim"]


PARTS = [
    {"name": "cls", "strategy": "mean", "stop": 1},
    {"name": "patches", "strategy": "attention", "start": 1},
    {"name": "state", "width": 31},
    {"name": "time", "width": 1, "strategy": "sinusoidal", "options": {"dim": 8}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readouts")
    (folder / "readouts_under_check.py").write_text(READOUTS)
    return folder


@pytest.fixture
def run(monkeypatch, folder):
    """Run ``regplug check`` in that folder."""
    monkeypatch.chdir(folder)
    return functools.partial(run_command, "check")


def test_a_good_readout_has_a_row_for_every_check_and_all_pass(run):
    code, out, _ = run("gated-abmil", *FAST, "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["schema"]) == (0, True, "regplug.check/1")
    assert (found["strategy"], found["num_registers"], found["hidden_dim"]) == ("regplug:gated-abmil", 4, 24)
    assert [row["check"] for row in found["checks"]] == [check.name for check in all_checks(["torchscript"])]
    assert {row["verdict"] for row in found["checks"]} == {"passed"}
    assert [*found["checks"][0]] == ["readout", "check", "verdict", "seconds", "detail", "ok"]


@pytest.mark.parametrize("count", ["4", "any"])
def test_a_join_is_checked_with_vectors_of_every_batch(run, count):
    """Longer than the tokens, through a readout or not; the programs take them as inputs of their own."""
    sizes = ["--num-registers", count, "--hidden-dim", "8", "-O", f"parts={json.dumps(PARTS)}"]
    code, out, _ = run("join", *FAST, *sizes, "--json")
    found = json.loads(out)
    verdicts = {row["check"]: row["verdict"] for row in found["checks"]}
    of_one_count = {"flop-count", "refuses-num-registers"} if count == "any" else set()
    assert (code, found["ok"], found["cond_dim"]) == (0, True, 8 + 8 + 31 + 8)
    skipped = {check for check, verdict in verdicts.items() if verdict == "not applicable"}
    assert skipped == {"mask-padding", "mask-gradient", "mask-empty-row", "mask-all-true"} | of_one_count
    assert verdicts["program[torchscript]"] == verdicts["threads"] == verdicts["batch-independence"] == "passed"


def test_the_command_prints_the_traceback_of_a_failed_check_if_that_is_asked_for(run, monkeypatch):
    assert "Traceback" not in run(*WRONG, *FAST)[2]
    monkeypatch.setenv("REGPLUG_TRACEBACK", "1")
    code, _, err = run(*WRONG, *FAST)
    assert code == 1
    assert "Traceback (most recent call last)" in err
    assert "ConformanceError: flop_count: expected" in err


def test_a_film_generator_is_named_in_the_same_way_as_for_export(run):
    chosen = ["--film-generator", "kernel-film", "--film", "kernel_hidden_dim=4"]
    code, out, _ = run("mean", *FAST, *chosen, "--film", "num_film_layers=1", "--json")
    [row] = [row for row in json.loads(out)["checks"] if row["check"] == "film"]
    assert (code, row["verdict"]) == (0, "passed")
    code, out, _ = run("mean", *FAST, *chosen, "--json")  # its constructor also needs the number of layers
    [row] = [row for row in json.loads(out)["checks"] if row["check"] == "film"]
    assert (code, row["verdict"]) == (1, "failed")
    assert "expected option num_film_layers: int" in row["detail"]


def test_a_failing_check_is_a_row_an_exit_code_and_a_failure_for_jenkins(run, tmp_path):
    report = tmp_path / "report.xml"
    report.write_text("of yesterday")
    code, out, err = run(*WRONG, *FAST, "--junit", report)
    assert code == 1
    *rows, last = out.splitlines()
    [failed] = [line for line in rows if re.match(r"\S+ +failed", line)]
    assert failed.startswith("flop-count ")
    assert "123456789" in failed
    assert re.fullmatch(r"\d+ passed, .*\b\d+ advisory, .*\b1 failed\b.* in [\d.]+ s", last)
    assert "built" in err  # what a class prints is not part of the report
    assert "built" not in out
    [suite] = ElementTree.parse(report).getroot()
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [check.name for check in all_checks(["torchscript"])]
    assert [case.get("name") for case in cases if case.find("failure") is not None] == ["flop-count"]
    assert suite.get("tests") == str(len(cases))
    assert suite.get("failures") == "1"
    assert suite.get("skipped") == str(len(suite.findall("testcase/skipped")))
    assert {case.get("classname") for case in cases} == {"readouts-under-check:one-wrong-number"}


def test_a_class_is_checked_with_a_backbones_sizes_and_is_not_registered_elsewhere(run):
    expected = ["--expect", "flop-count=known = wrong", "--expect", "program[no-such-backend]=not installed here"]
    code, out, _ = run(*WRONG, *FAST, *expected, "--backbone", "digits-vit", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["num_registers"], found["hidden_dim"]) == (4, 48)
    assert (
        found["layout"]
        == regplug.measure_backbone(regplug.default_registry().backbone_entry("digits-vit")).layout.as_dict()
    )
    [row] = [row for row in found["checks"] if row["check"] == "flop-count"]
    assert (row["verdict"], row["detail"].split(" (")[0]) == ("expected failure", "known = wrong")
    with pytest.raises(NameLookupError):
        regplug.resolve(found["strategy"], num_registers=4, hidden_dim=48)


def test_a_check_that_passes_though_it_is_expected_to_fail_is_a_failure(run):
    code, out, _ = run("mean", *FAST, "--expect", "shape=so they said")
    assert code == 1
    assert "declared to fail (so they said), but it passed" in out
    assert "1 unexpected pass in " in out.splitlines()[-1]


REFUSED = {
    "strategy 'poool': not registered; known:": ["poool"],
    "as a strategy, strategy 'regplug:pol': not registered": ["regplug:pol"],
    "As a class, readout 'no_module:Here': expected to import": ["no_module:Here"],
    "strategy 'acme-x:pol': expected an installed plugin": ["acme-x:pol"],
    "got num_registers=4: RuntimeError: never": ["readouts_under_check:Unbuildable"],
    "sizes: expected them with module:Class": ["pool", "--size", "width=hidden_dim"],
    "expected constructor words that mean": ["readouts_under_check:OneWrongNumber", "--size", "width=breadth"],
    "expected a check's name, got 'shap'": ["pool", "--expect", "shap=x"],
    "expected a check's name, got 'shape[onnx]'": ["pool", "--expect", "shape[onnx]=x"],
    "shape: expected a reason, got ''": ["pool", "--expect", "shape="],
    "--expect: expected CHECK=REASON, got 'shape'": ["pool", "--expect", "shape"],
    "export backend 'nope': not registered": ["pool", "--backend", "nope"],
    "FiLM generator 'nope': not registered": ["pool", "--film-generator", "nope"],
    "expected --backbone or --num-registers": ["pool", "--backbone", "digits-vit", "--hidden-dim", 8],
    "--junit: expected a file in a folder that can be written into": ["poool", "--junit", "/no/such/folder/x.xml"],
    "--junit: file /dev/null: expected a file": ["poool", "--junit", "/dev/null"],
}


@pytest.mark.parametrize("text", REFUSED)
def test_wrong_arguments_are_refused_on_one_line_before_anything_is_checked(run, text):
    code, out, err = run(*REFUSED[text])
    assert (code, out) == (2, "")
    assert text in err
    assert "Traceback" not in err
    assert "\n" not in err.strip() or err.startswith("Usage")


def test_a_broken_plugin_has_its_own_exit_code(run_python, install_plugin):
    broken = install_plugin(
        "broken-readouts", {"broken_readouts.py": "raise OSError('no disk')"}, {"regplug_v1": {"x": "broken_readouts"}}
    )
    code = "import sys; sys.argv = ['regplug', 'check', 'broken-readouts:any']\n"
    code += "from regplug.commands.main import main; main()"
    done = run_python(code, [broken])
    assert (done.returncode, done.stdout) == (3, "")
    assert "no disk" in done.stderr


def test_characters_that_xml_cannot_hold_are_replaced():
    rows = [
        CheckResult("a:b", "shape", "failed", 0.5, "red \x1b[31m <&> \ud800 \x00"),
        CheckResult("a:b", "c", "passed", 0),
    ]
    [suite] = ElementTree.fromstring(junit_xml(rows))
    assert suite.find("testcase/failure").get("message") == "red \N{REPLACEMENT CHARACTER}[31m <&> " + " ".join(
        2 * "\N{REPLACEMENT CHARACTER}"
    )
    assert suite.get("time") == "0.500"
