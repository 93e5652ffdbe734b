"""One check, what came of it, and what decides between the two."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from regplug.errors import ConformanceError, SpecError, class_name, closest, one_line
from regplug.registry.tracebacks import show_traceback

PASSED, FAILED, ADVISORY = "passed", "failed", "advisory"
EXPECTED_FAILURE, UNEXPECTED_PASS, NOT_APPLICABLE = "expected failure", "unexpected pass", "not applicable"
COMPILERS = ("eager", "inductor")


class Checked(Protocol):
    """What can be checked: a readout or a backbone."""

    @property
    def name(self) -> str:
        """Its name, as rows have it."""

    @property
    def is_own(self) -> bool:
        """Whether regplug itself brings it."""


Of = TypeVar("Of", bound=Checked, contravariant=True)


class DoesNotApplyError(Exception):
    """Raised by a check that has nothing to look at in this subject; says why."""


@dataclass(frozen=True)
class Check(Generic[Of]):
    """One check.

    Args:
        name: What rows and expected failures call it: ``batch-0``, ``program[torchscript]``.
        function: Looks at the subject; returns if all is well (what it found, if that says more), raises
            ``ConformanceError`` if not, and ``DoesNotApplyError`` if there is nothing to look at. Whatever else it
            raises, the subject did: a failure too. Its docstring says what is checked, and why.
        advisory: A failure says so and is none, for a readout that is not regplug's own: loaded programs refuse for it.
    """

    name: str
    function: Callable[[Of], str | None]
    advisory: bool = False

    @property
    def why(self) -> str:
        """The check's docstring on one line: what it looks at, and why."""
        return " ".join((inspect.getdoc(self.function) or "").split())


@dataclass(frozen=True)
class CheckResult:
    """One row: what came of one check on one readout, or on one backbone.

    ``verdict`` is ``passed``, ``failed``, ``advisory`` (failed, where that is allowed), ``expected failure`` (declared,
    and failed), ``unexpected pass`` (declared, but passed) or ``not applicable``; ``detail`` says why.
    """

    readout: str
    check: str
    verdict: str
    seconds: float
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether this row is as it must be."""
        return self.verdict not in (FAILED, UNEXPECTED_PASS)


def run_check(check: Check[Of], subject: Of, expected: str | None = None) -> CheckResult:
    """Run one check; warnings are silenced, so that a caller who makes errors of them gets the same verdict.

    Args:
        check: The check.
        subject: What is checked.
        expected: Why it is known to fail on this readout; None where it is to pass.
    """
    start = time.perf_counter()
    detail = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            detail = check.function(subject) or ""
        verdict = PASSED
    except DoesNotApplyError as reason:
        verdict, detail = NOT_APPLICABLE, str(reason)
    except ConformanceError as error:
        show_traceback(error)
        verdict, detail = FAILED, str(error)
    except (Exception, SystemExit) as error:  # whatever a subject raises, it must not
        show_traceback(error)
        verdict, detail = FAILED, f"{class_name(error)}: {one_line(error)}"
    if expected is not None and verdict == FAILED:
        verdict, detail = EXPECTED_FAILURE, f"{expected} ({detail})"
    elif expected is not None:
        verdict, detail = (
            UNEXPECTED_PASS,
            f"declared to fail ({expected}), but {detail if verdict != PASSED else 'it passed'}",
        )
    elif verdict == FAILED and check.advisory and not subject.is_own:
        verdict = ADVISORY
    return CheckResult(subject.name, check.name, verdict, time.perf_counter() - start, detail)


def refuse_expectations(owner: str, expected: object, is_known: Callable[[str], bool], shown: Sequence[str]) -> None:
    """Refuse expected failures that are no mapping, name a check that does not exist, or give no reason.

    Args:
        owner: Whose they are, for messages.
        expected: Check names, each with its reason.
        is_known: Whether there is a check of this name.
        shown: The names of all checks, for messages.
    """
    if not isinstance(expected, Mapping):
        raise SpecError(f"{owner}: expected failures: expected check names, each with its reason, got {expected!r}.")
    for name, reason in expected.items():
        if not (isinstance(name, str) and is_known(name)):
            raise SpecError(
                f"{owner}: expected failures: expected a check's name, got {name!r}{closest(str(name), shown)}."
            )
        if not (isinstance(reason, str) and reason.strip()):
            raise SpecError(f"{owner}: expected failures: {name}: expected a reason, got {reason!r}.")
