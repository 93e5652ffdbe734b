"""Runs all checks on one model of a backbone, with one result for each check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from regplug.conformance import backbone_entry, backbone_pictures, backbone_tokens
from regplug.conformance.backbone_subject import BackboneSubject, backbone_subject_of
from regplug.conformance.check import Check, CheckResult, refuse_expectations, run_check
from regplug.registry.entries import BackboneEntry


def all_backbone_checks() -> list[Check[BackboneSubject]]:
    """All checks of a backbone, in the order in which they run."""
    return [*backbone_entry.CHECKS, *backbone_tokens.CHECKS, *backbone_pictures.CHECKS]


def check_backbone(
    name: str | BackboneEntry,
    model: str | None = None,
    *,
    expected_failures: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
    **subject: Any,
) -> list[CheckResult]:
    """Run every check on a model of a backbone.

    The model is built once, with random weights, and run about thirty times: ``options`` that make it shallow and its
    inputs small (``depth=1``) check the same layout in seconds.

    Args:
        name: ``"NAME"``, ``"NAME:MODEL"`` or an entry.
        model: The model's name, if ``name`` is an entry or names none.
        expected_failures: Checks that are known to fail on it, each with the reason; one that passes is a failure.
        progress: Called with each check's name, and with the steps of a long one.
        **subject: Arguments of ``backbone_subject_of``: ``options``, ``input_shape``, ``registry``.

    Raises:
        NameLookupError: No backbone has this name.
        SpecError: ``expected_failures`` names no check, or the model is refused.
        PluginError: The model cannot be built.
    """
    found = backbone_subject_of(name, model, progress=progress, **subject)
    return check_backbone_subject(found, expected_failures or {}, progress)


def check_backbone_subject(
    subject: BackboneSubject, expected_failures: Mapping[str, str], progress: Callable[[str], None] = lambda step: None
) -> list[CheckResult]:
    """As ``check_backbone``, on a subject from ``backbone_subject_of``."""
    refuse_unknown_backbone_checks(subject.name, expected_failures)
    results = []
    for check in all_backbone_checks():
        progress(check.name)
        results.append(run_check(check, subject, expected_failures.get(check.name)))
    return results


def refuse_unknown_backbone_checks(label: str, expected: Mapping[str, str]) -> None:
    """Refuse an expected failure of a check that does not exist, or without a reason."""
    known = [check.name for check in all_backbone_checks()]
    refuse_expectations(label, expected, known.__contains__, known)
