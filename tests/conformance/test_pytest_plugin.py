"""The checks under pytest: one test each, in real runs of pytest; and what the plugin costs those who want none."""

from collections import Counter
from xml.etree import ElementTree

import pytest

import regplug
from regplug.conformance import all_backbone_checks, all_checks, parametrize_with_checks
from regplug.errors import SpecError

FAST = ["--readout-backend", "torchscript", "--readout-compiler", "eager"]
QUIET = ["-p", "no:cacheprovider", "-q"]
READOUTS = """
from torch import nn

class OneWrongNumber(nn.Module):
    def __init__(self, hidden_dim, scale=1.0):
        super().__init__()
        self.scale = scale
    def forward(self, registers):
        return registers.sum(1) * self.scale
    def flop_count(self, dim: int) -> int:
        return 123456789

class NoSevens(nn.Module):
    def forward(self, registers):
        if registers.shape[0] == 7:
            raise ArithmeticError("seven is too many")
        return registers.sum(1)
"""
OWN_TESTS = """
import regplug
from regplug import Registry
from regplug.conformance import parametrize_with_checks

class Plugin:
    @regplug.hookimpl
    def regplug_readouts(self):
        return [regplug.ReadoutEntry("wrong", "readouts_to_test:OneWrongNumber"),
                regplug.ReadoutEntry("sevens", "readouts_to_test:NoSevens")]

registry = Registry.installed()
registry.register(Plugin(), "own")
specs = [registry.resolve(name, num_registers=3, hidden_dim=8) for name in ("own:wrong", "own:sevens")]
expected = {"own:wrong": {"flop-count": "counted wrongly"}, "shape": "not so"}

@parametrize_with_checks(specs, expected_failures=expected, backends=[], compiler="eager", registry=registry)
def test_readout(subject, check):
    check(subject)
"""


@pytest.fixture(scope="module")
def run_pytest(run_python, tmp_path_factory):
    folder = tmp_path_factory.mktemp("readouts")
    (folder / "readouts_to_test.py").write_text(READOUTS)
    (folder / "test_own.py").write_text(OWN_TESTS)
    (folder / "test_nothing.py").write_text("def test_nothing():\n    pass\n")

    def run(*commands, after=""):
        """Run pytest once for each list of words, in one process; what it printed, and the reports' test cases."""
        report = tmp_path_factory.mktemp("report") / "report.xml"
        words = [[*QUIET, f"--rootdir={folder}", f"--junitxml={report}", *command] for command in commands]
        code = (
            f"import os, sys, pytest\nos.chdir({str(folder)!r})\nprint([int(pytest.main(one)) for one in {words!r}])\n"
        )
        done = run_python(code + after, [folder])
        cases = ElementTree.parse(report).getroot().iter("testcase") if report.exists() else ()
        return done.stdout + done.stderr, {case.get("name"): case for case in cases}

    return run


def outcomes(cases, prefix=""):
    """How many test cases ended how."""
    found = Counter()
    for name, case in cases.items():
        if name.startswith(prefix):
            outcome = next(iter(case), None)
            found["passed" if outcome is None else outcome.get("type") or outcome.tag] += 1
    return found


def test_each_readout_that_is_named_gets_one_test_for_every_check(run_pytest):
    asked = ["--readout", "pool", "--readout", "readouts_to_test:OneWrongNumber", *FAST]
    said, cases = run_pytest(["--pyargs", "regplug.conformance", *asked])
    checks = [check.name for check in all_checks(["torchscript"])]
    names = ("regplug:pool", "readouts-to-test:one-wrong-number")
    assert list(cases) == [f"test_asked_readout[{name}-{check}]" for name in names for check in checks]
    assert outcomes(cases, "test_asked_readout[regplug:pool-") == {"passed": len(checks)}
    assert [name for name, case in cases.items() if case.find("failure") is not None] == [
        "test_asked_readout[readouts-to-test:one-wrong-number-flop-count]"
    ]
    assert "ConformanceError: readouts-to-test:one-wrong-number: flop-count: " in said
    assert "run_check" not in said  # the traceback ends in the test


def test_an_authors_own_test_file_gets_every_check_and_its_expected_failures(run_pytest):
    said, cases = run_pytest(["test_own.py"])
    checks = [check.name for check in all_checks([])]
    assert list(cases) == [f"test_readout[own:{name}-{check}]" for name in ("wrong", "sevens") for check in checks]

    def end_of(test):
        found = next(iter(cases[f"test_readout[own:{test}]"]), None)
        return None if found is None else (found.get("type") or found.tag, found.get("message"))

    assert end_of("wrong-batch-odd") is None
    kind, reason = end_of("wrong-flop-count")
    assert (kind, reason.split(" (")[0]) == ("pytest.xfail", "counted wrongly")
    kind, reason = end_of("wrong-refuses-num-registers")
    assert (kind, reason.split(":")[0]) == ("pytest.xfail", "advisory")
    assert end_of("sevens-flop-count")[0] == "pytest.skip"
    for name in ("wrong", "sevens"):
        assert "shape: declared to fail (not so), but it passed" in end_of(f"{name}-shape")[1]
    assert "ArithmeticError: seven is too many" in end_of("sevens-batch-odd")[1]
    assert '>           raise ArithmeticError("seven is too many")' in said  # where it was raised


def test_without_a_readout_pytest_gets_no_torch_and_no_click_of_ours(run_pytest):
    after = "print([name in sys.modules for name in ('regplug.conformance.pytest_plugin', 'torch', 'click', 'rich')])"
    said, _ = run_pytest(["test_nothing.py"], after=after)
    assert "1 passed" in said
    assert "[True, False, False, False]" in said


def test_what_would_check_nothing_is_a_wrong_use_of_pytest(run_pytest):
    kit = ["--pyargs", "regplug.conformance"]
    said, _ = run_pytest(
        kit,
        [*kit, "-n", "1"],
        ["test_nothing.py", "--readout", "pool"],
        [*kit, "--readout", "poool"],
        [*kit, "--readout", "pool", "--readout-option", "x"],
        [*kit, "--readout", "pool", "--readout-compiler", "x"],
        [*kit, "--readout", "readouts_to_test:OneWrongNumber", "--readout-option", "colour=1"],
    )
    assert "[4, 4, 4, 4, 4, 4, 4]" in said
    assert said.count("expected --readout NAME, --readout module:Class or --readout-backbone NAME, got none.") == 2
    assert "expected `--pyargs regplug.conformance` with it, got other tests only;" in said
    assert "strategy 'poool': not registered; known:" in said
    assert "--readout-option: expected key=value, got 'x'." in said
    assert "compiler: expected one of eager, inductor, got 'x'." in said
    assert "option 'colour': expected a known option, got 1" in said
    assert "Traceback" not in said


def test_a_decorator_without_readouts_or_with_unknown_names_is_refused():
    spec = regplug.resolve("mean", num_registers=3, hidden_dim=8)
    with pytest.raises(SpecError, match="expected at least one ReadoutSpec, got none."):
        parametrize_with_checks([])
    with pytest.raises(SpecError, match="expected a list of ReadoutSpec, got 'mean'; use regplug.resolve."):
        parametrize_with_checks("mean")
    with pytest.raises(SpecError, match="expected a list of ReadoutSpec, got 'mean'"):
        parametrize_with_checks([spec, "mean"])
    with pytest.raises(SpecError, match="expected a check's name, got 'shap'.*closest: shape"):
        parametrize_with_checks([spec], expected_failures={"shap": "reason"}, backends=[])
    with pytest.raises(SpecError, match="shape: expected a reason, got ' '."):
        parametrize_with_checks([spec], expected_failures={"regplug:mean": {"shape": " "}}, backends=[])
    with pytest.raises(SpecError, match="expected one of regplug:mean, got 'mean'."):
        parametrize_with_checks([spec], expected_failures={"mean": {"shape": "reason"}}, backends=[])


def test_each_backbone_that_is_named_gets_one_test_for_every_check(run_pytest):
    kit = ["--pyargs", "regplug.conformance"]
    said, cases = run_pytest([*kit, "--readout-backbone", "digits-vit", "--readout-model-option", "num_blocks=1"])
    checks = [check.name for check in all_backbone_checks()]
    assert list(cases) == [f"test_asked_readout[regplug-digits:digits-vit-{check}]" for check in checks]
    assert "failed" not in said
    said, _ = run_pytest(
        [*kit, "--readout-backbone", "digit-vit"],
        [*kit, "--readout-backbone", "digits-vit", "--readout-input", "8,x"],
        [*kit, "--readout-backbone", "digits-vit", "--readout-model-option", "num_blocks"],
        ["test_nothing.py", "--readout-backbone", "digits-vit"],
    )
    assert "[4, 4, 4, 4]" in said
    assert "closest: digits-vit" in said
    assert "--readout-input: input: expected positive integers, as 3,224,224, got '8,x'." in said
    assert "--readout-model-option: expected key=value, got 'num_blocks'." in said
    assert "--readout-backbone: expected `--pyargs regplug.conformance` with it" in said
