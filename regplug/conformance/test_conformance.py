"""The checks of what is asked for: ``pytest --pyargs regplug.conformance --readout NAME`` or ``--readout-backbone``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from regplug.conformance.pytest_plugin import ASKED

if TYPE_CHECKING:
    from regplug.conformance.backbone_subject import BackboneSubject
    from regplug.conformance.subject import Subject


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a check and subject."""
    subjects = metafunc.config.stash.get(ASKED, [])
    tests = []
    if subjects:  # else pytest is about to refuse, and needs no torch for that
        from regplug.conformance.parametrize import params_of

        tests = [test for subject in subjects for test in params_of(subject)]
    metafunc.parametrize(("subject", "check"), tests)


def test_asked_readout(subject: Subject | BackboneSubject, check: Callable[[object], None]) -> None:
    """One check on one readout, or one backbone."""
    check(subject)
