"""The checks of what ``--readout`` names: ``pytest --pyargs regplug.conformance --readout NAME``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from regplug.conformance.pytest_plugin import ASKED

if TYPE_CHECKING:
    from regplug.conformance.subject import Subject


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a check and readout."""
    subjects = metafunc.config.stash.get(ASKED, [])
    tests = []
    if subjects:  # else pytest is about to refuse, and needs no torch for that
        from regplug.conformance.parametrizing import params_of

        tests = [test for subject in subjects for test in params_of(subject)]
    metafunc.parametrize(("subject", "check"), tests)


def test_asked_readout(subject: Subject, check: Callable[[Subject], None]) -> None:
    """One check on one readout."""
    check(subject)
