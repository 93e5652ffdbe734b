"""The checks as pytest tests, one test for each check: for an author's test file and for ``--readout``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from regplug.registry.tracebacks import show_traceback


class CheckTest:
    """One check as a test: call it with the subject.

    Args:
        check: The check.
        expected: Why it is known to fail on this subject; None if it must pass.
    """

    def __init__(self, check: Check[Any], expected: str | None = None) -> None:
        self.check = check
        self.expected = expected

    def __call__(self, subject: Subject | BackboneSubject) -> None:
        """Run the check, and end the test as the verdict says.

        An expected or advisory failure is pytest's xfail; a check that does not apply is skipped.

        Raises:
            ConformanceError: The check failed, or passed though it is declared to fail; the subject's exception is
                chained.
        """
        __tracebackhide__ = True
        result = run_check(self.check, subject, self.expected)
        if result.error is not None:
            show_traceback(result.error)
        if result.verdict == NOT_APPLICABLE:
            pytest.skip(result.detail)
        if result.verdict == ADVISORY:
            pytest.xfail(f"advisory: {result.detail}")
        if result.verdict == EXPECTED_FAILURE:
            pytest.xfail(result.detail)
        if not result.ok:
            message = f"{subject.name}: {self.check.name}: {result.detail}"
            raise ConformanceError(message) from _in_its_package(subject, result.error)


def parametrize_with_checks(
    specs: Sequence[ReadoutSpec],
    *,
    expected_failures: Mapping[str, str | Mapping[str, str]] | None = None,
    **subject_options: Any,
) -> pytest.MarkDecorator:
    """Turn a test function into one test for each check and readout.

    Args:
        specs: Specs from ``regplug.resolve``, one or more.
        expected_failures: Checks that are known to fail, each with the reason; one that passes is a failure. To declare
            them for one of several readouts, map its strategy, ``distribution:name``, to such a mapping.
        **subject_options: Arguments of ``subject_of``.

    Raises:
        SpecError: No spec or something else is given, or an expected failure names an unknown check or strategy.

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
    """Turn a test function into one test for each check and backbone; a backbone is built once, at collection.

    Args:
        names: ``"NAME"``, ``"NAME:MODEL"`` or entries, one or more.
        expected_failures: Checks that are known to fail, each with the reason; one that passes is a failure.
        **subject_options: Arguments of ``backbone_subject_of``: ``options``, ``input_shape``, ``registry``.

    Raises:
        NameLookupError: No backbone has this name.
        SpecError: There is no name, a model or an option is refused, or an expected failure names an unknown check.

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
    """The parameters ``subject, check`` of one test for each check of a subject; ids are ``strategy-check``.

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


def _in_its_package(subject: Subject | BackboneSubject, error: BaseException | None) -> BaseException | None:
    """The exception with only the frames of the subject's package; None if it was raised elsewhere."""
    if error is None or isinstance(error, ConformanceError):  # a check's own message is enough
        return None
    owner = type(subject.built) if isinstance(subject, BackboneSubject) else subject.spec.readout_class
    package = getattr(owner, "__module__", "").partition(".")[0]
    kept, frames, trace = None, [], error.__traceback__
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    for frame in reversed(frames):
        if frame.tb_frame.f_globals.get("__name__", "").partition(".")[0] == package:
            kept = TracebackType(kept, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return error.with_traceback(kept) if kept else None


def _checked(specs: Sequence[ReadoutSpec]) -> list[ReadoutSpec]:
    found = list(specs) if isinstance(specs, Sequence) and not isinstance(specs, str) else [specs]
    for spec in found:
        if not isinstance(spec, ReadoutSpec):
            raise SpecError(
                f"parametrize_with_checks: expected a list of ReadoutSpec, got {spec!r}; use regplug.resolve."
            )
    if not found:  # pytest would skip the test, and nothing would be checked, silently
        raise SpecError("parametrize_with_checks: expected at least one ReadoutSpec, got none.")
    return found


def _by_strategy(
    strategies: Sequence[str], expected: Mapping[str, str | Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """The expected failures of each strategy: those declared for all strategies, and its own."""
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
