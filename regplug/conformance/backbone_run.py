"""Runs the checks on one model of a backbone, one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from regplug.conformance import backbone_building, backbone_reading
from regplug.conformance.backbone_subject import BackboneSubject, backbone_subject_of
from regplug.conformance.check import Check, CheckResult, refuse_expectations, run_check
from regplug.registry.entries import BackboneEntry


def all_backbone_checks() -> list[Check[BackboneSubject]]:
    """Every check of a backbone, in the order in which they run."""
    return [*backbone_building.CHECKS, *backbone_reading.CHECKS]


def check_backbone(
    name: str | BackboneEntry,
    model: str | None = None,
    *,
    expected_failures: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
    **subject: Any,
) -> list[CheckResult]:
    """Run every check on a model of a backbone.

    The model is built once, with random weights, and run some thirty times: ``options`` that make a shallow one on
    small inputs (``depth=1``) prove the same layout in seconds.

    Args:
        name: ``"NAME"``, ``"NAME:MODEL"`` or an entry.
        model: The model's name, where ``name`` is an entry or has none.
        expected_failures: Checks that are known to fail on it, each with the reason; one that passes is a failure.
        progress: Called with each check's name, and what a long one does.
        **subject: As ``backbone_subject_of`` takes: ``options``, ``input_shape``, ``registry``.

    Raises:
        NameLookupError: No backbone has this name.
        SpecError: ``expected_failures`` names no check, or the model is refused.
        PluginError: It does not build.
    """
    found = backbone_subject_of(name, model, progress=progress, **subject)
    return check_backbone_subject(found, expected_failures or {}, progress)


def check_backbone_subject(
    subject: BackboneSubject, expected_failures: Mapping[str, str], progress: Callable[[str], None] = lambda step: None
) -> list[CheckResult]:
    """``check_backbone``, of what ``backbone_subject_of`` made."""
    refuse_unknown_backbone_checks(subject.name, expected_failures)
    results = []
    for check in all_backbone_checks():
        progress(check.name)
        results.append(run_check(check, subject, expected_failures.get(check.name)))
    return results


def refuse_unknown_backbone_checks(owner: str, expected: Mapping[str, str]) -> None:
    """Refuse an expected failure of a check that does not exist, or without a reason."""
    known = [check.name for check in all_backbone_checks()]
    refuse_expectations(owner, expected, known.__contains__, known)
