"""The checks as pytest's tests: one test a check, for a test file of one's own and for ``--readout``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import pytest

from regplug.conformance.backbone_run import all_backbone_checks, refuse_unknown_backbone_checks
from regplug.conformance.backbone_subject import BackboneSubject, backbone_subject_of
from regplug.conformance.check import ADVISORY, EXPECTED_FAILURE, NOT_APPLICABLE, Check, run_check
from regplug.conformance.run import all_checks, refuse_unknown_checks, subject_of
from regplug.conformance.subject import Subject
from regplug.errors import ConformanceError, SpecError
from regplug.registry.entries import BackboneEntry
from regplug.registry.spec import ReadoutSpec


class CheckTest:
    """One check as a test: call it with the subject.

    Args:
        check: The check.
        expected: Why it is known to fail on this subject; None where it is to pass.
    """

    def __init__(self, check: Check[Any], expected: str | None = None) -> None:
        self.check = check
        self.expected = expected

    def __call__(self, subject: Subject | BackboneSubject) -> None:
        """Run the check, and end the test as the verdict says.

        A failure that was expected or is advisory is pytest's xfail, what does not apply is skipped.

        Raises:
            ConformanceError: The check failed, or passed though it is declared to fail; what the readout raised is
                chained.
        """
        __tracebackhide__ = True
        raised: list[Exception] = []

        def function(subject: Subject | BackboneSubject) -> None:
            try:
                self.check.function(subject)
            except Exception as error:
                raised.append(error)
                raise

        result = run_check(replace(self.check, function=function), subject, self.expected)
        if result.verdict == NOT_APPLICABLE:
            pytest.skip(result.detail)
        if result.verdict == ADVISORY:
            pytest.xfail(f"advisory: {result.detail}")
        if result.verdict == EXPECTED_FAILURE:
            pytest.xfail(result.detail)
        if not result.ok:
            message = f"{subject.name}: {self.check.name}: {result.detail}"
            raise ConformanceError(message) from next(filter(None, (_inside(subject, one) for one in raised)), None)


def parametrize_with_checks(
    specs: Sequence[ReadoutSpec],
    *,
    expected_failures: Mapping[str, str | Mapping[str, str]] | None = None,
    **subject_options: Any,
) -> pytest.MarkDecorator:
    """Make one test a check of a test function, for every readout.

    Args:
        specs: What ``regplug.resolve`` gave, one or more.
        expected_failures: Checks that are known to fail, each with the reason; one that passes is a failure. For one
            of several readouts: its strategy, ``distribution:name``, with such a mapping.
        **subject_options: As ``subject_of`` takes.

    Raises:
        SpecError: There is no spec, something else than a spec, or an expected failure of an unknown check or strategy.

    Example:
        >>> import regplug
        >>> @parametrize_with_checks([regplug.resolve("mean", num_registers=4, hidden_dim=24)], backends=[])
        ... def test_readout(subject, check):
        ...     check(subject)
    """
    specs = _checked(specs)
    expected = _by_strategy([spec.strategy for spec in specs], expected_failures or {})
    subjects = [subject_of(spec, **subject_options) for spec in specs]
    return pytest.mark.parametrize(
        ("subject", "check"), [p for one in subjects for p in params_of(one, expected[one.name])]
    )


def parametrize_with_backbone_checks(
    names: Sequence[str | BackboneEntry],
    *,
    expected_failures: Mapping[str, str] | None = None,
    **subject_options: Any,
) -> pytest.MarkDecorator:
    """Make one test a check of a test function, for every backbone; each is built once, as its tests are collected.

    Args:
        names: ``"NAME"``, ``"NAME:MODEL"`` or entries, one or more.
        expected_failures: Checks that are known to fail, each with the reason; one that passes is a failure.
        **subject_options: As ``backbone_subject_of`` takes: ``options``, ``input_shape``, ``registry``.

    Raises:
        NameLookupError: No backbone has this name.
        SpecError: There is no name, a model or an option is refused, or an expected failure is of an unknown check.

    Example:
        >>> @parametrize_with_backbone_checks(["acme-vit:small"], options={"depth": 1})  # doctest: +SKIP
        ... def test_backbone(subject, check):
        ...     check(subject)
    """
    if isinstance(names, (str, BackboneEntry)) or not names:
        raise SpecError(f"parametrize_with_backbone_checks: expected a list of backbones, one or more, got {names!r}.")
    subjects = [backbone_subject_of(name, **subject_options) for name in names]
    return pytest.mark.parametrize(
        ("subject", "check"), [p for one in subjects for p in params_of(one, expected_failures)]
    )


def params_of(subject: Subject | BackboneSubject, expected: Mapping[str, str] | None = None) -> list[Any]:
    """Every check of a subject, as the parameters ``subject, check`` of one test each; ids are ``strategy-check``.

    Raises:
        SpecError: ``expected`` names no check.
    """
    expected = expected or {}
    checks: Sequence[Check[Any]]
    if isinstance(subject, BackboneSubject):
        refuse_unknown_backbone_checks(subject.name, expected)
        checks = all_backbone_checks()
    else:
        refuse_unknown_checks(subject.name, expected)
        checks = all_checks(subject.backends)
    return [
        pytest.param(subject, CheckTest(check, expected.get(check.name)), id=f"{subject.name}-{check.name}")
        for check in checks
    ]


def _inside(subject: Subject | BackboneSubject, error: Exception) -> Exception | None:
    """What the subject raised, with the frames of its own package alone; None where it was raised elsewhere."""
    owner = type(subject.built) if isinstance(subject, BackboneSubject) else subject.spec.readout_class
    package = getattr(owner, "__module__", "").partition(".")[0]
    kept, frames, walked = None, [], error.__traceback__
    while walked is not None:
        frames.append(walked)
        walked = walked.tb_next
    for frame in reversed(frames):
        if frame.tb_frame.f_globals.get("__name__", "").partition(".")[0] == package:
            kept = TracebackType(kept, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    # a check's own words say all
    return error.with_traceback(kept) if kept and not isinstance(error, ConformanceError) else None


def _checked(specs: Sequence[ReadoutSpec]) -> list[ReadoutSpec]:
    found = list(specs) if isinstance(specs, Sequence) and not isinstance(specs, str) else [specs]
    for spec in found:
        if not isinstance(spec, ReadoutSpec):
            raise SpecError(
                f"parametrize_with_checks: expected a list of ReadoutSpec, got {spec!r}; use regplug.resolve."
            )
    if not found:  # pytest would skip the test, and the kit have checked nothing without a word
        raise SpecError("parametrize_with_checks: expected at least one ReadoutSpec, got none.")
    return found


def _by_strategy(
    strategies: Sequence[str], expected: Mapping[str, str | Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """The expected failures of each strategy: those that are declared for all, and its own."""
    if not isinstance(expected, Mapping):
        raise SpecError(
            f"parametrize_with_checks: expected_failures: expected check names, each with its reason, got {expected!r}."
        )
    for_all = {check: reason for check, reason in expected.items() if not isinstance(reason, Mapping)}
    own = {strategy: checks for strategy, checks in expected.items() if isinstance(checks, Mapping)}
    unknown = [strategy for strategy in own if strategy not in strategies]
    if unknown:
        raise SpecError(
            f"parametrize_with_checks: expected_failures: expected one of {', '.join(strategies)}, got {unknown[0]!r}."
        )
    return {strategy: {**for_all, **own.get(strategy, {})} for strategy in strategies}
