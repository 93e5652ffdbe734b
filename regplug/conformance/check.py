"""One check, its result, and how a check is run."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from regplug.errors import ConformanceError, SpecError, class_name, closest, one_line

PASSED, FAILED, ADVISORY = "passed", "failed", "advisory"
EXPECTED_FAILURE, UNEXPECTED_PASS, NOT_APPLICABLE = "expected failure", "unexpected pass", "not applicable"
COMPILERS = ("eager", "inductor")


class AnySubject(Protocol):
    """What can be checked: a readout or a backbone."""

    @property
    def name(self) -> str:
        """Its name, as results show it."""

    @property
    def is_own(self) -> bool:
        """Whether regplug itself provides it."""


SubjectType = TypeVar("SubjectType", bound=AnySubject, contravariant=True)


class DoesNotApplyError(Exception):
    """Raised by a check that has nothing to look at in this subject; its message is the reason."""


@dataclass(frozen=True)
class Check(Generic[SubjectType]):
    """One check.

    Args:
        name: Its name in results and expected failures: ``batch-0``, ``program[torchscript]``.
        function: Looks at the subject. Returns if all is well (a detail, if there is one), raises ``ConformanceError``
            if not, and ``DoesNotApplyError`` if there is nothing to look at. Any other exception comes from the subject
            and is a failure too. Its docstring says what is checked, and why.
        advisory: A failure is reported but does not count, unless the readout is regplug's own: loaded programs refuse
            such input for it.
    """

    name: str
    function: Callable[[SubjectType], str | None]
    advisory: bool = False

    @property
    def why(self) -> str:
        """The check's docstring on one line: what it looks at, and why."""
        return " ".join((inspect.getdoc(self.function) or "").split())


@dataclass(frozen=True)
class CheckResult:
    """One row: the result of one check on one readout or backbone.

    ``verdict`` is ``passed``, ``failed``, ``advisory`` (failed, where that is allowed), ``expected failure`` (declared,
    and failed), ``unexpected pass`` (declared, but passed) or ``not applicable``; ``detail`` says why. ``error`` is the
    exception of a check that failed; it keeps what was checked in memory.
    """

    readout: str
    check: str
    verdict: str
    seconds: float
    detail: str = ""
    error: BaseException | None = field(default=None, compare=False, repr=False)

    @property
    def ok(self) -> bool:
        """Whether this row is as it must be."""
        return self.verdict not in (FAILED, UNEXPECTED_PASS)


def run_check(check: Check[SubjectType], subject: SubjectType, expected: str | None = None) -> CheckResult:
    """Run one check. Warnings are silenced, so a caller who turns them into errors gets the same verdict.

    Args:
        check: The check.
        subject: What is checked.
        expected: Why it is known to fail on this subject; None if it must pass.
    """
    start = time.perf_counter()
    detail = ""
    raised: BaseException | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            detail = check.function(subject) or ""
        verdict = PASSED
    except DoesNotApplyError as reason:
        verdict, detail = NOT_APPLICABLE, str(reason)
    except ConformanceError as error:
        verdict, detail, raised = FAILED, str(error), error
    except (Exception, SystemExit) as error:  # a subject may raise anything, and that is a failure
        verdict, detail, raised = FAILED, f"{class_name(error)}: {one_line(error)}", error
    if expected is not None and verdict == FAILED:
        verdict, detail = EXPECTED_FAILURE, f"{expected} ({detail})"
    elif expected is not None:
        verdict, detail = (
            UNEXPECTED_PASS,
            f"declared to fail ({expected}), but {detail if verdict != PASSED else 'it passed'}",
        )
    elif verdict == FAILED and check.advisory and not subject.is_own:
        verdict = ADVISORY
    return CheckResult(subject.name, check.name, verdict, time.perf_counter() - start, detail, raised)


def refuse_expectations(
    label: str, expected: object, is_known: Callable[[str], bool], known_names: Sequence[str]
) -> None:
    """Refuse expected failures that are no mapping, name a check that does not exist, or give no reason.

    Args:
        label: The subject's name, for messages.
        expected: Check names, each with its reason.
        is_known: Whether a check of this name exists.
        known_names: The names of all checks, for messages.
    """
    if not isinstance(expected, Mapping):
        raise SpecError(f"{label}: expected failures: expected check names, each with its reason, got {expected!r}.")
    for name, reason in expected.items():
        if not (isinstance(name, str) and is_known(name)):
            raise SpecError(
                f"{label}: expected failures: expected a check's name, got {name!r}{closest(str(name), known_names)}."
            )
        if not (isinstance(reason, str) and reason.strip()):
            raise SpecError(f"{label}: expected failures: {name}: expected a reason, got {reason!r}.")
