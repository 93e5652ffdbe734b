"""The checks as pytest tests, in real runs of pytest; and what the plugin costs a run that uses no check."""

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


KIT = ["--pyargs", "regplug.conformance"]
# the runs of pytest, all in one process: their words
RUNS = {
    "readouts": [*KIT, "--readout", "gated-abmil", "--readout", "readouts_to_test:OneWrongNumber", *FAST],
    "own tests": ["test_own.py"],
    "backbone": [*KIT, "--readout-backbone", "digits-vit", "--readout-model-option", "num_blocks=1"],
    "no readout": KIT,
    "no readout for a worker": [*KIT, "-n", "1"],
    "other tests": ["test_nothing.py", "--readout", "pool"],
    "unknown readout": [*KIT, "--readout", "poool"],
    "no option": [*KIT, "--readout", "pool", "--readout-option", "x"],
    "no compiler": [*KIT, "--readout", "pool", "--readout-compiler", "x"],
    "unknown option": [*KIT, "--readout", "readouts_to_test:OneWrongNumber", "--readout-option", "colour=1"],
    "unknown backbone": [*KIT, "--readout-backbone", "digit-vit"],
    "no sizes": [*KIT, "--readout-backbone", "digits-vit", "--readout-input", "8,x"],
    "no model option": [*KIT, "--readout-backbone", "digits-vit", "--readout-model-option", "num_blocks"],
    "other tests for a backbone": ["test_nothing.py", "--readout-backbone", "digits-vit"],
}
# the message of each run that pytest refuses
REFUSALS = {
    "no readout": "expected --readout NAME, --readout module:Class or --readout-backbone NAME, got none.",
    "no readout for a worker": "expected --readout NAME, --readout module:Class or --readout-backbone NAME, got none.",
    "other tests": "--readout: expected `--pyargs regplug.conformance` with it, got other tests only;",
    "unknown readout": "strategy 'poool': not registered; known:",
    "no option": "--readout-option: expected key=value, got 'x'.",
    "no compiler": "compiler: expected one of eager, inductor, got 'x'.",
    "unknown option": "option 'colour': expected a known option, got 1",
    "unknown backbone": "closest: digits-vit",
    "no sizes": "--readout-input: input: expected positive integers, as 3,224,224, got '8,x'.",
    "no model option": "--readout-model-option: expected key=value, got 'num_blocks'.",
    "other tests for a backbone": "--readout-backbone: expected `--pyargs regplug.conformance` with it",
}
# prints each run's name and exit code around what pytest prints
RUN_ALL = """
import gc, os, sys, pytest
os.dup2(1, 2)
os.chdir({folder!r})
for name, words in {runs!r}.items():
    gc.freeze()  # pytest collects garbage five times at its end, which takes long among torch's objects
    print("run:", name, flush=True)
    code = int(pytest.main(words))
    sys.stderr.flush()
    print("exit code:", code, flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readouts")
    (folder / "readouts_to_test.py").write_text(READOUTS)
    (folder / "test_own.py").write_text(OWN_TESTS)
    (folder / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    return folder


@pytest.fixture(scope="module")
def outputs(run_python, folder):
    """What each run of pytest printed; their reports are in the folder."""
    runs = {
        name: [*QUIET, f"--rootdir={folder}", f"--junitxml={folder / name}.xml", *words] for name, words in RUNS.items()
    }
    printed = run_python(RUN_ALL.format(folder=str(folder), runs=runs), [folder]).stdout
    return dict(part.split("\n", 1) for part in printed.split("run: ")[1:])


@pytest.fixture
def cases_of(outputs, folder):
    """The test cases in the report of a run."""
    return lambda name: {case.get("name"): case for case in ElementTree.parse(folder / f"{name}.xml").iter("testcase")}


def outcomes(cases, prefix=""):
    """How many test cases ended how."""
    found = Counter()
    for name, case in cases.items():
        if name.startswith(prefix):
            outcome = next(iter(case), None)
            found["passed" if outcome is None else outcome.get("type") or outcome.tag] += 1
    return found


@pytest.mark.slow
def test_each_readout_that_is_named_gets_one_test_for_every_check(outputs, cases_of):
    cases = cases_of("readouts")
    checks = [check.name for check in all_checks(["torchscript"])]
    names = ("regplug:gated-abmil", "readouts-to-test:one-wrong-number")
    assert list(cases) == [f"test_asked_readout[{name}-{check}]" for name in names for check in checks]
    assert outcomes(cases, "test_asked_readout[regplug:gated-abmil-") == {"passed": len(checks)}
    assert [name for name, case in cases.items() if case.find("failure") is not None] == [
        "test_asked_readout[readouts-to-test:one-wrong-number-flop-count]"
    ]
    assert "ConformanceError: readouts-to-test:one-wrong-number: flop-count: " in outputs["readouts"]
    assert "run_check" not in outputs["readouts"]  # the traceback ends in the test


@pytest.mark.slow
def test_an_authors_own_test_file_gets_every_check_and_its_expected_failures(outputs, cases_of):
    cases = cases_of("own tests")
    checks = [check.name for check in all_checks([])]
    assert list(cases) == [f"test_readout[own:{name}-{check}]" for name in ("wrong", "sevens") for check in checks]

    def outcome_of(test):
        found = next(iter(cases[f"test_readout[own:{test}]"]), None)
        return None if found is None else (found.get("type") or found.tag, found.get("message"))

    assert outcome_of("wrong-batch-odd") is None
    kind, reason = outcome_of("wrong-flop-count")
    assert (kind, reason.split(" (")[0]) == ("pytest.xfail", "counted wrongly")
    kind, reason = outcome_of("wrong-refuses-num-registers")
    assert (kind, reason.split(":")[0]) == ("pytest.xfail", "advisory")
    assert outcome_of("sevens-flop-count")[0] == "pytest.skip"
    for name in ("wrong", "sevens"):
        assert "shape: declared to fail (not so), but it passed" in outcome_of(f"{name}-shape")[1]
    assert "ArithmeticError: seven is too many" in outcome_of("sevens-batch-odd")[1]
    # the line that raised it
    assert '>           raise ArithmeticError("seven is too many")' in outputs["own tests"]


@pytest.mark.slow
def test_each_backbone_that_is_named_gets_one_test_for_every_check(outputs, cases_of):
    checks = [check.name for check in all_backbone_checks()]
    assert list(cases_of("backbone")) == [f"test_asked_readout[regplug-digits:digits-vit-{check}]" for check in checks]
    assert "failed" not in outputs["backbone"]


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSALS)
def test_a_run_that_would_check_nothing_is_a_usage_error_of_pytest(outputs, name):
    assert outputs[name].rstrip().endswith("exit code: 4")
    assert REFUSALS[name] in outputs[name]
    assert "Traceback" not in outputs[name]


def test_without_a_readout_pytest_gets_no_torch_and_no_click_of_ours(run_python, folder):
    code = (
        f"import os, sys, pytest\nos.chdir({str(folder)!r})\n"
        f"pytest.main({[*QUIET, f'--rootdir={folder}', 'test_nothing.py']!r})\n"
        "print([name in sys.modules for name in ('regplug.conformance.pytest_plugin', 'torch', 'click', 'rich')])"
    )
    printed = run_python(code, [folder]).stdout
    assert "1 passed" in printed
    assert "[True, False, False, False]" in printed


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
