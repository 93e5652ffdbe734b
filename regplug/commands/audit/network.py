"""Audits a network: builds and runs it at several sizes, and compares the widths at each FiLM input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from regplug.commands.audit.film_inputs import class_at
from regplug.commands.audit.inputs import Inputs
from regplug.commands.audit.origins import Break, is_inside
from regplug.commands.audit.runs import MAX_CALLS, Refusal, Run, Runs
from regplug.commands.audit.sizes import alone, format_sizes, no_size_error, start_sizes, together
from regplug.commands.audit.trace import Plan
from regplug.commands.audit.verdict import FOLLOWS, UNKNOWN, WRONG, FiLMInputFinding, judge, unfit

PERTURBED = 5
FEW_TRIES = 8


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        device: Where constructors ran; forward passes run on the meta device.
        sizes: The sizes that were built and run, the network's own first.
        fixed: Names of the sizes that kept their value.
        findings: One for each FiLM input.
        refused: Sizes that did not build or run.
        error: Why the forward at the network's own sizes ended early; empty if it did not.
        notes: Layers elsewhere whose width does not follow.
        unused: Names in ``expect`` that are no FiLM input, or that follow.
    """

    device: str
    sizes: tuple[Mapping[str, int], ...]
    fixed: tuple[str, ...]
    findings: tuple[FiLMInputFinding, ...]
    refused: tuple[Refusal, ...]
    error: str
    notes: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there are FiLM inputs, all follow or are expected not to, and each expectation was needed."""
        return self.passes(allow_unknown=False)

    def passes(self, allow_unknown: bool) -> bool:
        """As ``ok``; with ``allow_unknown``, neither an unknown width nor a lack of FiLM inputs is a failure."""
        failing = {WRONG} if allow_unknown else {WRONG, UNKNOWN}
        some = bool(self.findings) or allow_unknown
        return (
            some and not self.unused and not any(one.verdict in failing and not one.expected for one in self.findings)
        )

    def count(self, verdict: str) -> int:
        """How many FiLM inputs have a verdict."""
        return sum(one.verdict == verdict for one in self.findings)

    @property
    def summary(self) -> str:
        """``3 FiLM inputs: 1 follow, 1 wrong, 1 unknown``."""
        counts = f"{self.count(FOLLOWS)} follow, {self.count(WRONG)} wrong, {self.count(UNKNOWN)} unknown"
        return f"{len(self.findings)} FiLM inputs: {counts}"


def audit_network(
    owner: str,
    build: Callable[..., Any],
    sizes: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    words: Mapping[str, str] | None = None,
    inputs: Inputs | None = None,
    shape: Sequence[int] | None = None,
    expect: Mapping[str, str] | None = None,
    may_be_fixed: bool = False,
    step: Callable[[str], None] = lambda step: None,
) -> Audit:
    """Build and run a network at its own sizes and at five others, and compare the widths at each FiLM input.

    Nothing is computed: modules and tensors are on the meta device. A constructor that reads numbers out of its weights
    runs on the CPU.

    Args:
        owner: The network, for messages.
        build: Its class, or a function that makes it; gets by keyword the sizes that it names, of ``num_registers``,
            ``hidden_dim`` and ``compressed_dim``.
        sizes: The sizes to start from; None for the constructor's default.
        options: Its other arguments.
        words: The constructor's own names for sizes, each with ours.
        inputs: Makes the arguments of its forward from the sizes; found by trying when None.
        shape: ``(C, H, W)`` of its images, for trying.
        expect: Paths of FiLM inputs that need not follow, each with the reason.
        may_be_fixed: Audit a constructor without any size too, although that proves nothing.
        step: Called with a description of each step.

    Raises:
        SpecError: The sizes are unknown or the constructor names none, or the network does not build at them.
    """
    start, named = start_sizes(owner, build, sizes, words or {})
    if not named and not may_be_fixed:
        raise no_size_error(owner, build)
    audited = Runs(owner, build, named, options, words or {})
    step("its own sizes")
    base, trace = audited.run_first(start, inputs, shape)
    runs = [Run(base.sizes, trace)]
    refused: list[Refusal] = []

    def try_sizes(candidates: Sequence[Mapping[str, int]], word: str | None, wanted: int) -> bool:
        """Run so many of the candidates; gives whether that many ran."""
        for at in candidates:
            if wanted == 0 or audited.calls > MAX_CALLS:
                break
            if at in [run.sizes for run in runs] or at in [one.sizes for one in refused]:
                continue
            step(format_sizes(at))
            found = audited.run(at, word)
            if isinstance(found, Refusal):
                refused.append(found)
            else:
                runs.append(found)
                wanted -= 1
        return wanted == 0

    if trace.error is None:
        movable = [word for word in named if try_sizes(alone(start, word, audited.device), word, 1)]
        if len(movable) < len(named):  # some sizes can only change together: D may have to be a multiple of R
            try_sizes(together(start, named, audited.device)[:FEW_TRIES], None, 1 + PERTURBED - len(runs))
        try_sizes(together(start, movable, audited.device), None, 1 + PERTURBED - len(runs))
    varied = [word for word in start if len({run.sizes[word] for run in runs}) > 1]
    fixed = {word: [one for one in refused if one.word == word] for word in named if word not in varied}
    findings = [
        judge(path, label, audited.plan, runs, varied, _blame(path, fixed), list(fixed), audited.guessed)
        for path, label in audited.plan.films.items()
    ]
    notes = []
    for one, run, modulates in _elsewhere(runs, audited.plan):
        said = f"takes {one.wanted}, is given {one.given} at {format_sizes(run.sizes)}"
        if modulates:  # with a vector that comes from no readout, such as a class token
            findings.append(unfit(one.where, class_at(base.module, one.where), len(runs), said))
        else:
            notes.append(f"{one.where or 'forward'}: {said}; on no way to a FiLM input")
    expected = {} if expect is None else dict(expect)
    findings = [replace(one, expected=None if one.verdict == FOLLOWS else expected.get(one.module)) for one in findings]
    used = {one.module for one in findings if one.expected is not None}
    return Audit(
        audited.device,
        tuple(run.sizes for run in runs),
        tuple(word for word in start if word not in varied),
        tuple(findings),
        tuple(refused),
        trace.error or "",
        tuple(notes),
        tuple(name for name in expected if name not in used),
    )


def _blame(film: str, fixed: Mapping[str, Sequence[Refusal]]) -> Refusal | None:
    """The first refusal of a size, if all refusals of that size are about this FiLM input."""
    for refusals in fixed.values():
        if refusals and all(film in one.films for one in refusals):
            return refusals[0]
    return None


def _elsewhere(runs: Sequence[Run], plan: Plan) -> Iterator[tuple[Break, Run, bool]]:
    """Layers that a vector does not fit and that lead to no FiLM input; and whether they scale or shift features."""
    seen: set[str] = set()
    for run in runs:
        arrivals = [one for path in plan.films for one in run.trace.arrivals.get(path, ())]
        reached = {one for arrival in arrivals for one in arrival.origin.broken}
        for one in run.trace.breaks:
            if one not in reached and not any(is_inside(one.where, film) for film in plan.films):
                if one.where not in seen:
                    yield one, run, one in run.trace.modulating
                seen.add(one.where)
