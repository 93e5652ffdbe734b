"""The checks of masks: right readouts pass them all, each wrong one fails its own, and others are not looked at."""

import pytest
import torch
from support import wrong_masks as wrong
from support.wrong_masks import RightMasked
from support.wrong_readouts import Right, failing, subject_for

from regplug.conformance import masks, outputs, rejections, training
from regplug.conformance.check import NOT_APPLICABLE, PASSED, run_check

CHECKS = masks.CHECKS
NAMES = {check.name for check in CHECKS}
OTHERS = (*outputs.CHECKS, *rejections.CHECKS, *training.CHECKS)

# a wrong readout, and all checks of masks that fail on it
WRONG = [
    (wrong.IgnoresTheMask, {"mask-padding", "mask-gradient", "mask-empty-row"}),
    (wrong.IgnoresTheMaskIfScripted, {"mask-padding"}),
    (wrong.DividesByAllTokens, {"mask-padding"}),
    (wrong.MultipliesByTheMask, {"mask-padding", "mask-gradient"}),
    (wrong.DropsNaN, {"mask-padding", "mask-gradient"}),
    (wrong.ReadsTheFirstTokens, {"mask-padding", "mask-gradient"}),
    (wrong.LeaksAGradient, {"mask-gradient"}),
    (wrong.MasksAfterTheLayer, {"mask-gradient"}),
    (wrong.DividesByZero, {"mask-empty-row"}),
    (wrong.GivesItsBias, {"mask-empty-row"}),
    (wrong.GivesItsBiasIfExported, {"mask-empty-row"}),
    (wrong.ReadsTheMask, {"mask-empty-row"}),
    (wrong.EmptiesTheBatch, {"mask-empty-row"}),
    (wrong.DoublesAFullBatch, {"mask-all-true"}),
    (wrong.RefusesManyTokens, {"any-count"}),
    (wrong.DoublesIfFree, {"any-count"}),
    # its answer for one token is NaN, alone and padded
    (wrong.DividesByOneLess, {"any-count", "mask-padding"}),
]


def verdicts(build):
    return {check.name: run_check(check, subject_for(build)) for check in CHECKS}


@pytest.mark.parametrize("build", [RightMasked, wrong.GivesZeros, wrong.NotScriptable])
def test_a_right_readout_passes_every_check(build):
    assert {result.verdict for result in verdicts(build).values()} == {PASSED}


@pytest.mark.parametrize("build", [RightMasked, wrong.OnlyFixed])
def test_it_passes_the_other_checks_too(build):
    assert failing(subject_for(build), OTHERS) == set()


@pytest.mark.parametrize(("build", "wanted"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_readout_fails_its_own_checks_and_no_others(build, wanted):
    assert failing(subject_for(build), CHECKS) == wanted


def test_every_check_fails_alone_on_a_wrong_readout():
    assert {name for _, names in WRONG if len(names) == 1 for name in names} == NAMES


def test_a_readout_of_a_fixed_number_is_checked_with_a_mask_and_not_with_other_numbers():
    results = verdicts(wrong.OnlyFixed)
    assert {name for name, result in results.items() if result.verdict == PASSED} == NAMES - {"any-count"}
    assert results["any-count"].detail == "its constructor needs a fixed number of registers."


class FixedAndMultiplies(wrong.MultipliesByTheMask):
    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__(num_registers, hidden_dim)


def test_a_readout_of_a_fixed_number_that_lets_padding_through_fails():
    assert failing(subject_for(FixedAndMultiplies), CHECKS) == {"mask-padding", "mask-gradient"}


def test_a_readout_without_a_mask_is_not_looked_at():
    results = verdicts(Right)
    assert {result.verdict for result in results.values()} == {NOT_APPLICABLE}
    assert {result.detail for result in results.values()} == {
        "it takes no mask.",
        "its constructor needs a fixed number of registers.",
    }


def test_a_failure_says_mode_side_and_padding():
    detail = verdicts(wrong.IgnoresTheMaskIfScripted)["mask-padding"].detail
    assert detail.startswith("scripted: samples with NaN as padding on the right: expected outputs within ")
    detail = verdicts(wrong.DividesByZero)["mask-empty-row"].detail
    assert detail == "eager: a sample without a token that counts: expected zeros or an error, got NaN."
    detail = verdicts(wrong.GivesItsBiasIfExported)["mask-empty-row"].detail
    assert detail.startswith("exported: a sample without a token that counts: expected zeros or an error, got up to ")
    detail = verdicts(wrong.ReadsTheMask)["mask-empty-row"].detail
    assert detail.startswith("torch.export with a mask: expected a graph, got ")


def test_checks_leave_the_global_random_numbers_as_they_were():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    verdicts(RightMasked)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_checks_docstring_says_what_on_its_first_line_and_why_below():
    for check in CHECKS:
        what, blank, *why = (check.function.__doc__ or "").splitlines()
        assert what.endswith(".")
        assert blank == ""
        assert why
