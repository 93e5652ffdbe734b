"""The checks of outputs, rejections and training: right readouts pass them all, and each wrong one fails its own."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support import wrong_readouts as wrong
from support.strategies import D, R
from support.wrong_readouts import Right, failing, subject_for
from torch import Tensor, nn

import regplug
from regplug import FiLMEntry, TokenLayout
from regplug.conformance import CheckResult, Subject, outputs, rejections, subject_of, training
from regplug.conformance.check import ADVISORY, FAILED, NOT_APPLICABLE, PASSED, run_check
from regplug.conformance.subject import close, same_bits
from regplug.errors import ConformanceError

CHECKS = (*outputs.CHECKS, *rejections.CHECKS, *training.CHECKS)
NAMES = [check.name for check in CHECKS]
REFUSALS = {"refuses-num-registers", "refuses-hidden-dim", "refuses-rank"}

# a wrong readout, its options, and all checks that fail on it
WRONG = [
    (wrong.SwallowsOptions, {}, {"constructor"}),
    (wrong.GrowsWithEachBuild, {}, {"constructor"}),
    (wrong.DrawsElsewhere, {}, {"constructor"}),
    (wrong.NamesWithEachBuild, {}, {"constructor"}),
    (wrong.BuildsAnotherClass, {}, {"constructor"}),
    (wrong.ShardsLargeBatches, {}, {"shape"}),
    (wrong.CastsToFloat32, {}, {"dtype"}),
    (wrong.CastsToFloat32AndBack, {}, {"dtype"}),
    (wrong.MultipliesByFloat32, {}, {"dtype"}),
    (wrong.TurnsByFloat32, {}, {"dtype"}),
    (wrong.RoundsIn16Bits, {}, {"dtype"}),
    (wrong.WiderInTraining, {}, {"cond-dim"}),
    (wrong.SaysAnotherWidthWhenReal, {}, {"cond-dim", "film"}),
    (wrong.SomethingForNothing, {}, {"batch-0"}),
    (wrong.RefusesNothing, {}, {"batch-0"}),
    (wrong.Squeezes, {}, {"batch-1", "batch-independence"}),
    (wrong.DividesByTheOthers, {}, {"batch-1", "batch-independence"}),
    (wrong.HalvesTheBatch, {}, {"batch-odd"}),
    (wrong.CentersTheBatch, {}, {"batch-independence"}),
    (wrong.CountsTheSamples, {}, {"batch-independence"}),
    (wrong.LeavesDropoutOn, {}, {"deterministic", "batch-independence"}),
    (wrong.CountsItsCalls, {}, {"deterministic"}),
    (wrong.Remembers, {}, {"deterministic"}),
    (wrong.ScalesInPlace, {}, {"input-unchanged"}),
    (wrong.ScalesInPlaceInTraining, {}, {"input-unchanged"}),
    (wrong.Views, {}, {"register-slice"}),
    (wrong.CountsOnMemory, {}, {"register-slice"}),
    (wrong.AnyNumber, {}, {"refuses-num-registers"}),
    (wrong.AnyWidth, {}, {"refuses-hidden-dim"}),
    (wrong.AnyRank, {}, {"refuses-rank"}),
    (wrong.CastsInside, {}, {"dtype"}),
    (wrong.Promotes, {}, {"refuses-dtype"}),
    (wrong.ReadsIntegersAnotherWay, {}, {"refuses-dtype"}),
    (wrong.SaysTooLittle, {}, REFUSALS),
    (wrong.SaysItByAnotherError, {}, REFUSALS),
    (wrong.CountsOneRegisterMore, {}, {"film"}),
    (wrong.Detaches, {}, {"gradients"}),
    (wrong.DetachesRegisters, {}, {"gradients"}),
    (wrong.DetachesAll, {}, {"gradients"}),
    (wrong.DetachesAllButTheFirst, {}, {"gradients"}),
    (wrong.Forgets, {}, {"gradients"}),
    (wrong.MultipliesByZero, {}, {"gradients"}),
    (wrong.RootsOfZero, {}, {"gradients"}),
    (wrong.GoesBackTwice, {}, {"gradients"}),
    (wrong.DetachesAPath, {}, {"gradients"}),
    (wrong.DetachesInEval, {}, {"gradients"}),
    (wrong.CountsAMultiplyAddOnce, {}, {"flop-count"}),
    (wrong.CountsTwice, {}, {"flop-count"}),
    (wrong.CountsABatch, {}, {"flop-count"}),
    (wrong.CountsInFractions, {}, {"flop-count"}),
    # another width than on the meta device, and another type: every check that looks at the output fails
    (
        wrong.WiderWhenReal,
        {},
        {"shape", "cond-dim", "batch-0", "batch-1", "batch-odd", "film", "flop-count"},
    ),
    (wrong.GivesTheInsideToo, {}, set(NAMES) - {"constructor", *REFUSALS, "refuses-dtype"}),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for work cost more than the work, especially next to other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Usual(Right):
    """Batch norm and dropout, as usual."""

    def __init__(self, num_registers: int, hidden_dim: int, activation: str = "Tanh") -> None:
        super().__init__(num_registers, hidden_dim)
        self.norm = nn.BatchNorm1d(wrong.WIDTH)
        self.activation = getattr(nn, activation)()
        self.drop = nn.Dropout(0.2)

    def read(self, registers: Tensor) -> Tensor:
        return self.drop(self.activation(self.norm(super().read(registers))))


class InBfloat16(Right):
    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__(num_registers, hidden_dim)
        self.to(torch.bfloat16)


class NoFloat64(Right):
    """A kernel for float32 only."""

    def read(self, registers: Tensor) -> Tensor:
        if registers.dtype != torch.float32:
            raise NotImplementedError(f"kernel not implemented for {registers.dtype}")
        return super().read(registers)


class Attends(nn.Module):
    """A third party's readout, unchanged: it takes any number of registers; torch's own errors refuse the rest."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, hidden_dim))
        self.attention = nn.MultiheadAttention(hidden_dim, 3, batch_first=True, dropout=0.1)

    def forward(self, registers: Tensor) -> Tensor:
        return self.attention(self.query.expand(len(registers), -1, -1), registers, registers)[0][:, 0]


def run(subject: Subject) -> dict[str, CheckResult]:
    return {check.name: run_check(check, subject) for check in CHECKS}


def not_passed(subject: Subject) -> dict[str, str]:
    return {name: result.verdict for name, result in run(subject).items() if result.verdict != PASSED}


@pytest.mark.parametrize("strategy", ["mean", "pool", "concat", "compress-concat", "attention"])
def test_one_register_of_width_one_passes(strategy):
    options = {"compress-concat": {"compressed_dim": 1}, "attention": {"num_queries": 1, "num_heads": 1}}
    spec = regplug.resolve(strategy, num_registers=1, hidden_dim=1, **options.get(strategy, {}))
    assert not_passed(subject_of(spec, backends=[], compiler="eager")) == {}


@pytest.mark.parametrize("build", [Right, Usual, InBfloat16, NoFloat64])
def test_a_right_readout_passes_every_check(build):
    assert not_passed(subject_for(build)) == {}


@pytest.mark.parametrize(
    "layout",
    [
        TokenLayout(R, D, start=0),
        TokenLayout(R, D, start=-R),
        TokenLayout(R, D, start=3, num_tokens=9),
        TokenLayout.interleaved(num_registers=R, hidden_dim=D, num_patches=13),
        TokenLayout(R, D, indices=(0, 1, 4, 6), num_tokens=8),
    ],
)
def test_a_right_readout_passes_with_its_registers_at_any_positions(layout):
    assert not_passed(subject_for(Right, layout=layout)) == {}


@pytest.mark.parametrize(("build", "options", "wanted"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_readout_fails_its_own_checks_and_no_others(build, options, wanted):
    assert failing(subject_for(build, options=options), CHECKS) == wanted


def test_every_check_fails_on_a_wrong_readout_and_all_but_one_also_alone():
    assert set().union(*(names for _, _, names in WRONG)) == set(NAMES)
    alone = {name for _, _, names in WRONG if len(names) == 1 for name in names}
    # batch-independence looks at single samples too
    assert set(NAMES) - alone == {"batch-1"}


def test_a_failed_checks_result_keeps_the_exception_and_prints_nothing(capsys, monkeypatch):
    monkeypatch.setenv("REGPLUG_TRACEBACK", "1")
    results = run(subject_for(wrong.RefusesNothing))
    assert {name for name, result in results.items() if result.error is not None} == {"batch-0"}
    assert isinstance(results["batch-0"].error, ValueError)
    assert results["batch-0"] == replace(results["batch-0"], error=None)
    assert capsys.readouterr() == ("", "")


def test_checks_leave_the_global_random_numbers_as_they_were():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    run(subject_for(Usual))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_checks_docstring_says_what_on_its_first_line_and_why_below():
    assert len(set(NAMES)) == len(NAMES)
    for check in CHECKS:
        what, blank, *why = (check.function.__doc__ or "").splitlines()
        assert what.endswith(".")
        assert blank == ""
        assert why


# ---- readouts of other packages


def test_a_missing_refusal_is_advisory_for_readouts_of_others():
    assert not_passed(subject_for(Attends, own=False)) == {
        "refuses-num-registers": ADVISORY,
        "flop-count": NOT_APPLICABLE,
    }
    # for regplug's own it is a failure, and the message is checked
    assert failing(subject_for(Attends), CHECKS) == REFUSALS


def test_readouts_of_others_may_refuse_an_empty_batch_but_not_answer_wrongly():
    refused = run(subject_for(wrong.RefusesNothing, own=False))["batch-0"]
    assert refused.verdict == NOT_APPLICABLE
    assert refused.detail.startswith("refuses an empty batch: ValueError: an empty batch (")
    assert run(subject_for(wrong.SomethingForNothing, own=False))["batch-0"].verdict == FAILED


# ---- FiLM


def film_row(film: Any, **subject: Any) -> CheckResult:
    return run(subject_for(Right, film=film, **subject))["film"]


KERNEL = {"kernel_hidden_dim": 8, "num_film_layers": 2}


@pytest.mark.parametrize(
    ("film", "text"),
    [
        (wrong.ShiftFirst, "starts at (0, 1): expected form='gamma', order='gamma-first' as declared, got what "
         "form='gamma', order='shift-first' would be the identity for."),
        (wrong.OnePlusGamma, "starts at (0, 0): expected form='gamma', order='gamma-first' as declared, got what "
         "form='1+gamma', order='gamma-first' or form='1+gamma', order='shift-first' would be the identity for."),
        (wrong.NarrowBeta, "pair 0: expected two tensors [4, width] of one width, got [[4, 8], [4, 1]]."),
        (wrong.OneTensor, "OneTensor: expected [(gamma, beta), ...], got Tensor."),
    ],
)  # fmt: skip
def test_a_wrong_film_generator_fails(film, text):
    row = film_row(film, film_options=KERNEL)
    assert row.verdict == FAILED
    assert text in row.detail


@pytest.mark.parametrize("options", [{}, {"init_type": "small_random"}])
def test_regplugs_own_film_generator_passes_with_any_initial_pairs(options):
    assert film_row("regplug.nn.film:KernelFiLMGenerator", film_options=KERNEL | options).verdict == PASSED


@pytest.mark.parametrize(
    ("film", "form", "order", "verdict"),
    [
        (wrong.Drawn, "gamma", "gamma-first", PASSED),
        (wrong.Drawn, "1+gamma", "shift-first", PASSED),
        (wrong.Zeroed, "1+gamma", "gamma-first", PASSED),
        (wrong.Zeroed, "1+gamma", "shift-first", PASSED),
        (wrong.Zeroed, "gamma", "gamma-first", FAILED),
    ],
)
def test_a_plugins_film_generator_must_do_what_its_family_declares(film, form, order, verdict):
    family = FiLMEntry("theirs", film, form=form, order=order)
    registry, _ = wrong.registry_of(Right, films=[family])
    assert film_row(film, registry=registry).verdict == verdict


def test_a_module_that_applies_film_itself_is_paired_and_not_checked_further():
    registry, _ = wrong.registry_of(Right, films=[FiLMEntry("theirs", wrong.Modulates, gives_pairs=False)])
    row = film_row(wrong.Modulates, registry=registry)
    assert row.verdict == NOT_APPLICABLE
    assert row.detail == "it pairs with Modulates, which modulates features itself."


def test_an_undeclared_film_generator_fails_with_what_is_missing():
    assert "expected a known family or a stated form and order" in film_row(wrong.Drawn).detail
    row = film_row("regplug.nn.film:KernelFiLMGenerator", film_options={"layers": 1})
    assert "option 'layers': expected a known option, got 1" in row.detail


# ---- the comparisons themselves


def test_close_refuses_small_differences_other_dtypes_and_numbers_that_are_not_finite():
    right = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    close("same", right.clone(), right)
    close("empty", right[:0], right[:0])
    for other in (right * (1 + 5e-5), right.double(), right[:1], right / 0, right * float("nan"), (right,)):
        with pytest.raises(ConformanceError, match=r"^it: expected "):
            close("it", other, right)


def test_same_bits_sees_one_bit_and_nan_is_equal_to_itself():
    numbers = torch.tensor([1.0, float("nan"), 0.0])
    assert same_bits(numbers.clone(), numbers)
    assert same_bits(torch.tensor(1.0), torch.tensor(1.0))
    for other in (torch.tensor([1.0, float("nan"), -0.0]), numbers.double(), numbers[:2], numbers[None]):
        assert not same_bits(other, numbers)
