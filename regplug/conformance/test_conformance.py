"""The tests of ``pytest --pyargs regplug.conformance --readout NAME`` or ``--readout-backbone NAME``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from regplug.conformance.pytest_plugin import SUBJECTS

if TYPE_CHECKING:
    from regplug.conformance.backbone_subject import BackboneSubject
    from regplug.conformance.subject import Subject


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each check and subject."""
    subjects = metafunc.config.stash.get(SUBJECTS, [])
    tests = []
    if subjects:  # without any, pytest refuses the run, which needs no torch
        from regplug.conformance.parametrize import params_of

        tests = [test for subject in subjects for test in params_of(subject)]
    metafunc.parametrize(("subject", "check"), tests)


def test_asked_readout(subject: Subject | BackboneSubject, check: Callable[[object], None]) -> None:
    """One check on one readout, or one backbone."""
    check(subject)
