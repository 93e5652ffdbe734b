"""Audits a network: builds and runs it at several sizes, and follows what reaches its FiLM inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.nn.parameter import is_lazy

from regplug.commands.audit.building import build_on_meta
from regplug.commands.audit.dataflow import Break, is_inside
from regplug.commands.audit.inputs import Inputs, describe_parameters, find_inputs
from regplug.commands.audit.parts import class_at, declared_films, plan_of
from regplug.commands.audit.sizes import alone, format_sizes, refuse_without_sizes, start_sizes, together
from regplug.commands.audit.verdict import FOLLOWS, UNKNOWN, WRONG, Finding, Run, judge, unfit
from regplug.commands.audit.wiring import Network, Plan, Trace, follow
from regplug.errors import SpecError, one_line
from regplug.registry.options import bind

PERTURBED = 5
FEW_TRIES = 8
MOST_CALLS = 2_000_000  # of torch functions, in all forwards: some minutes
# how regplug, then torch's linear layers on the CPU and on the meta device, say that a width is wrong
WRONG_WIDTH = re.compile(r"conditioning of width \d+, got \d+|shapes cannot be multiplied|same reduction dim")


@dataclass(frozen=True)
class Refusal:
    """Sizes at which the network was not built, or its forward ended early, and why.

    Args:
        sizes: The sizes.
        error: What it says.
        word: The size that was changed alone; None where several were.
        films: FiLM inputs that this is about: the error is theirs, or on the way to them.
    """

    sizes: Mapping[str, int]
    error: str
    word: str | None
    films: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        device: Where constructors ran; forwards run on the meta device.
        sizes: Those that were built and run, the starting ones first.
        fixed: Words of the sizes that kept their value.
        findings: One for each FiLM input.
        refused: Sizes that did not build or run.
        error: Why the forward at the starting sizes ended early; empty if it did not.
        notes: Layers elsewhere whose width does not follow.
        unused: What ``expect`` names that is no FiLM input, or follows.
    """

    device: str
    sizes: tuple[Mapping[str, int], ...]
    fixed: tuple[str, ...]
    findings: tuple[Finding, ...]
    refused: tuple[Refusal, ...]
    error: str
    notes: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there are FiLM inputs, all follow or are expected not to, and each expectation was needed."""
        return self.passes(allow_unknown=False)

    def passes(self, allow_unknown: bool) -> bool:
        """As ``ok``; with ``allow_unknown`` unknown is no failure, nor is a network without FiLM inputs."""
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
    """Build and run a network at its sizes and at five others, and compare widths at each FiLM input.

    Nothing is computed: modules and tensors are on the meta device. Constructors that read numbers out of weights run
    on the CPU.

    Args:
        owner: The network, for messages.
        build: Its class, or a function that makes it; gets by keyword those of ``num_registers``, ``hidden_dim`` and
            ``compressed_dim`` that it names.
        sizes: Where to start; None for the constructor's default.
        options: Its other arguments.
        words: The constructor's own words for sizes, each with ours.
        inputs: What its forward is called with, at given sizes; found by trying when None.
        shape: ``(C, H, W)`` of its images, for trying.
        expect: Paths of FiLM inputs that need not follow, each with the reason.
        may_be_fixed: Whether a constructor without any size is audited all the same; nothing is proven then.
        step: Called with what is done now.

    Raises:
        SpecError: The sizes are not known or not named, or the network does not build at them.
    """
    start, named = start_sizes(owner, build, sizes, words or {})
    if not named and not may_be_fixed:
        raise refuse_without_sizes(owner, build)
    auditor = _Auditor(owner, build, named, options, words or {})
    step("its own sizes")
    base, trace = auditor.run_first(start, inputs, shape)
    runs = [Run(base.sizes, trace)]
    refused: list[Refusal] = []

    def try_sizes(candidates: Sequence[Mapping[str, int]], word: str | None, wanted: int) -> bool:
        """Whether so many of the candidates ran."""
        for at in candidates:
            if wanted == 0 or auditor.calls > MOST_CALLS:
                break
            if at in [run.sizes for run in runs] or at in [one.sizes for one in refused]:
                continue
            step(format_sizes(at))
            found = auditor.run(at, word)
            if isinstance(found, Refusal):
                refused.append(found)
            else:
                runs.append(found)
                wanted -= 1
        return wanted == 0

    if trace.error is None:
        movable = [word for word in named if try_sizes(alone(start, word, auditor.device), word, 1)]
        if len(movable) < len(named):  # some sizes go together: D may have to be a multiple of R
            try_sizes(together(start, named, auditor.device)[:FEW_TRIES], None, 1 + PERTURBED - len(runs))
        try_sizes(together(start, movable, auditor.device), None, 1 + PERTURBED - len(runs))
    varied = [word for word in start if len({run.sizes[word] for run in runs}) > 1]
    fixed = {word: [one for one in refused if one.word == word] for word in named if word not in varied}
    findings = [
        judge(path, label, auditor.plan, runs, varied, _blame(path, fixed), list(fixed), auditor.guessed)
        for path, label in auditor.plan.films.items()
    ]
    notes = []
    for one, run, modulates in _elsewhere(runs, auditor.plan):
        said = f"takes {one.wanted}, is given {one.given} at {format_sizes(run.sizes)}"
        if modulates:  # by what comes from no readout, such as a class token
            findings.append(unfit(one.where, class_at(base.module, one.where), len(runs), said))
        else:
            notes.append(f"{one.where or 'forward'}: {said}; on no way to a FiLM input")
    expected = {} if expect is None else dict(expect)
    findings = [replace(one, expected=None if one.verdict == FOLLOWS else expected.get(one.module)) for one in findings]
    used = {one.module for one in findings if one.expected is not None}
    return Audit(
        auditor.device,
        tuple(run.sizes for run in runs),
        tuple(word for word in start if word not in varied),
        tuple(findings),
        tuple(refused),
        trace.error or "",
        tuple(notes),
        tuple(name for name in expected if name not in used),
    )


class _Auditor:
    """Builds one network at several sizes, and follows a forward of each."""

    def __init__(
        self,
        owner: str,
        build: Callable[..., Any],
        named: Sequence[str],
        options: Mapping[str, Any],
        words: Mapping[str, str],
    ) -> None:
        self.owner, self.build, self.named, self.options, self.words = owner, build, named, options, words
        self.device = "meta"
        self.guessed = False
        self.calls = 0
        self.inputs: Inputs = lambda sizes: ((), {})
        self.plan = Plan({}, (), ())

    def make(self, at: Mapping[str, int]) -> Network:
        """The network at these sizes."""
        arguments = bind(self.owner, self.build, {w: at[w] for w in self.named}, self.options, self.words)
        module, self.device = build_on_meta(self.owner, self.build, arguments)
        return Network(module, at)

    def run_first(
        self, at: Mapping[str, int], inputs: Inputs | None, shape: Sequence[int] | None
    ) -> tuple[Network, Trace]:
        """Find inputs that run, readouts and FiLM inputs, then follow a forward to these."""
        network = self.make(at)
        self.plan = Plan({}, (), list(declared_films(network.module)))
        tried: list[tuple[Inputs, Trace]] = []

        def attempt(made: Inputs) -> int | None:
            # a try gives lazy weights their widths for good
            fresh = self.make(at) if any(map(is_lazy, network.module.parameters())) else network
            args, kwargs = made(at)
            trace = follow(replace(fresh, args=args, kwargs=kwargs), self.plan)
            tried.append((made, trace))
            self.calls += trace.calls
            if self.calls > MOST_CALLS:
                return None
            return trace.fits if trace.error is not None or trace.breaks else None

        if inputs is None:
            find_inputs(network.module, at, shape, attempt)
        else:
            attempt(inputs)
        # a vector of another width that does not fit says that the guess is wrong, one of registers that the network is
        fitting = [one for one in tried if one[1].error is None and all(cut.of_registers for cut in one[1].breaks)]
        self.guessed = inputs is None
        if not fitting and self.guessed:
            furthest = max((trace for _, trace in tried), key=lambda trace: trace.fits, default=Trace())
            error = furthest.error or "a layer takes another width"
            takes = describe_parameters(network.module)
            hint = f" (no inputs that were tried fit forward({takes}): use --input)" if takes else ""
            failed = Trace(error=error + hint)
            self.plan = plan_of(network.module, failed)
            return network, failed
        self.inputs, best = min(fitting or tried, key=lambda one: len(one[1].breaks))
        self.plan = plan_of(network.module, best)
        network = self.make(at)  # a forward may have cached what it made
        args, kwargs = self.inputs(at)
        network = replace(network, args=args, kwargs=kwargs)
        trace = follow(network, self.plan)
        self.plan.whole = frozenset(key for key, is_whole in trace.slices.items() if is_whole)
        self.calls += trace.calls
        parameters = dict(network.module.named_parameters())
        for one in trace.taken:
            widths = [arrival.width for arrival in trace.arrivals.get(one.film, ())]
            is_whole = one.weight in parameters and parameters[one.weight].shape[one.axis] == one.wanted
            if is_whole and one.given in widths and one.weight is not None:
                places = self.plan.weights.setdefault((one.film, one.argument), [])
                places.append((one.weight, one.axis))
        return network, trace

    def run(self, at: Mapping[str, int], word: str | None) -> Run | Refusal:
        """A forward at other sizes; or why there is none."""
        try:
            network = self.make(at)
            args, kwargs = self.inputs(at)
        except SpecError as error:
            text = one_line(error.__cause__ or error)
            films = [path for path, label in self.plan.films.items() if label.split()[0] in text]
            films = (films or list(self.plan.films)) if WRONG_WIDTH.search(text) else []
            return Refusal(at, text, word, tuple(films))
        trace = follow(replace(network, args=args, kwargs=kwargs), self.plan)
        self.calls += trace.calls
        if trace.error is None:
            return Run(at, trace)
        return Refusal(at, trace.error, word, tuple(self._stopped(trace)))

    def _stopped(self, trace: Trace) -> list[str]:
        """The FiLM inputs that a forward failed in, or on the way to."""
        films = [film for film in self.plan.films if film in trace.failed_in]
        readouts = {path for path in self.plan.readouts if path in trace.failed_in}
        if trace.failed is not None:
            readouts |= trace.failed.readouts
        for film, origins in self.plan.sources.items():
            if readouts & origins and film not in films:
                films.append(film)
        return films


def _blame(film: str, fixed: Mapping[str, Sequence[Refusal]]) -> Refusal | None:
    """The first refusal of a size that every try refused because of this FiLM input."""
    for refusals in fixed.values():
        if refusals and all(film in one.films for one in refusals):
            return refusals[0]
    return None


def _elsewhere(runs: Sequence[Run], plan: Plan) -> Iterator[tuple[Break, Run, bool]]:
    """Layers that a vector did not fit on no way to a FiLM input; and whether they scale or shift features."""
    seen: set[str] = set()
    for run in runs:
        arrivals = [one for path in plan.films for one in run.trace.arrivals.get(path, ())]
        reached = {one for arrival in arrivals for one in arrival.origin.broken}
        for one in run.trace.breaks:
            if one not in reached and not any(is_inside(one.where, film) for film in plan.films):
                if one.where not in seen:
                    yield one, run, one in run.trace.modulating
                seen.add(one.where)
