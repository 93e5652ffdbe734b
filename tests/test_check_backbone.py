"""The checks of a backbone: right ones pass, each wrong one fails the check that is for it, and no other."""

import pytest
from wrong_backbones import RIGHT, WRONG, registry_of

from regplug.conformance import all_backbone_checks, check_backbone
from regplug.conformance.check import FAILED, NOT_APPLICABLE, PASSED

NAMES = [check.name for check in all_backbone_checks()]


def rows_of(entry, **subject):
    return {row.check: row for row in check_backbone("acme-vit", registry=registry_of(entry), **subject)}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("options", [{}, {"depth": 6}], ids=["as built", "deeper"])
def test_a_right_backbone_passes_every_check(name, options):
    rows = rows_of(RIGHT[name], options=options)
    assert [*rows] == NAMES
    not_passed = {row.check: row.detail for row in rows.values() if row.verdict not in (PASSED, NOT_APPLICABLE)}
    assert not_passed == {}
    assert rows["marks"].verdict == PASSED


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_backbone_fails_the_check_that_is_for_it_and_no_other(name):
    entry, wanted, words = WRONG[name]
    rows = rows_of(entry, options={"depth": 3})
    failed = {row.check: row.detail for row in rows.values() if row.verdict == FAILED}
    assert [*failed] == [wanted], failed
    assert words in failed[wanted]
    assert len(failed[wanted]) <= 400


def test_every_check_but_that_of_imports_fails_on_a_wrong_backbone():
    assert {check for _, check, _ in WRONG.values()} == {*NAMES} - {"light-plugin"}
