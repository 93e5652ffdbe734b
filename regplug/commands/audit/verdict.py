"""The verdict on one FiLM input: its width follows the network's sizes, is wrong, or is unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regplug.commands.audit.inputs import BATCH
from regplug.commands.audit.joined_parts import describe_parts
from regplug.commands.audit.origins import Part
from regplug.commands.audit.runs import Refusal, Run
from regplug.commands.audit.sizes import LETTERS, format_sizes
from regplug.commands.audit.trace import Plan, Sources, Trace
from regplug.commands.audit.vector_pieces import Cut
from regplug.registry.width_formula import UNKNOWN as NO_FORMULA
from regplug.registry.width_formula import fit

HELD_OUT = 2
FOLLOWS, WRONG, UNKNOWN = "follows", "wrong", "unknown"


@dataclass(frozen=True)
class FiLMInputFinding:
    """One FiLM input: the width that it wants and the width that it gets, at each size; None if unknown.

    Args:
        module: Its path inside the network.
        generator: Its class, and its family if that is a known one.
        readout: Where its conditioning comes from: paths of readouts, and inputs of the network; None if unknown.
        wanted: The width that it wants, at each of the audit's sizes.
        given: The width that it gets, at each of the audit's sizes.
        wanted_formula: ``wanted`` as a formula in the sizes that vary.
        given_formula: ``given`` as a formula in the sizes that vary.
        verdict: ``"follows"``, ``"wrong"`` or ``"unknown"``.
        reason: Why it does not follow.
        expected: Why it need not follow, in the user's words.
    """

    module: str
    generator: str
    readout: str | None
    wanted: tuple[int | None, ...]
    given: tuple[int | None, ...]
    wanted_formula: str
    given_formula: str
    verdict: str
    reason: str
    expected: str | None = None


def judge(
    film: str,
    label: str,
    plan: Plan,
    runs: Sequence[Run],
    varied: Sequence[str],
    refusal: Refusal | None,
    fixed: Sequence[str],
    guessed: bool,
) -> FiLMInputFinding:
    """The finding about one FiLM input.

    Args:
        film: Its path.
        label: Its class and family.
        plan: What was followed.
        runs: The forward passes, the one at the network's own sizes first.
        varied: Names of the sizes that differ among them.
        refusal: Sizes that were refused because of this FiLM input, if every change of such a size was.
        fixed: Names of the sizes that could not be changed.
        guessed: Whether inputs were found by trying, so that their widths prove nothing.
    """
    widths = [_widths(film, run.trace) for run in runs]
    wanted, given = (tuple(pair[index] for pair in widths) for index in (0, 1))
    points = [tuple(run.sizes[word] for word in varied) for run in runs]
    letters = [LETTERS[word] for word in varied]
    formulas = [_formula(letters, points, one) for one in (wanted, given)]
    sources = plan.sources.get(film, Sources())
    verdict, reason = _verdict(
        film, runs, list(zip(wanted, given, strict=True)), formulas, sources, refusal, fixed, guessed
    )
    readout = ", ".join(sources.names()) or None
    return FiLMInputFinding(film, label, readout, wanted, given, formulas[0], formulas[1], verdict, reason)


def unfit(module: str, label: str, runs: int, reason: str) -> FiLMInputFinding:
    """The finding about a layer that does not fit, and makes a scale or a shift out of no conditioning vector."""
    unknown = (None,) * runs
    return FiLMInputFinding(module, label, None, unknown, unknown, NO_FORMULA, NO_FORMULA, WRONG, reason)


def _verdict(
    film: str,
    runs: Sequence[Run],
    widths: Sequence[tuple[int | None, int | None]],
    formulas: Sequence[str],
    sources: Sources,
    refusal: Refusal | None,
    fixed: Sequence[str],
    guessed: bool,
) -> tuple[str, str]:
    by = f" by {', '.join(names)}" if (names := sources.names()) else ""
    if any(None not in pair and pair[0] != pair[1] for pair in widths):
        wants, gives = (
            str(list(numbers)) if formula == NO_FORMULA else formula
            for numbers, formula in zip(zip(*widths, strict=True), formulas, strict=True)
        )
        reason = f"wants {wants}, is given {gives}{by}{_parts(film, runs, widths)}"
        if guessed and sources.inputs and not sources.readouts:
            return UNKNOWN, f"{reason}, whose width was guessed: use --input"
        return WRONG, reason
    for run in runs:
        for arrival in run.trace.arrivals.get(film, ()):
            for one in sorted(arrival.origin.broken, key=lambda one: one.where):
                where, sizes = one.where or "the forward", format_sizes(run.sizes)
                joins = describe_parts(one.parts, _own_parts(runs[0], one.parts))
                return (
                    WRONG,
                    f"{where}, on the way to it, takes {one.wanted}, is given {one.given} at {sizes}"
                    f"{joins and f', which {joins}'}",
                )
        lost = _lost(runs[0].trace, run.trace, film)
        if lost is not None:
            return (
                WRONG,
                f"{lost.where or 'the forward'}, on the way to it, uses pieces of {lost.used} of {lost.width} at "
                f"{format_sizes(run.sizes)}",
            )
    if refusal is not None:
        return WRONG, f"stops at {format_sizes(refusal.sizes)}: {refusal.error}"
    first = runs[0].trace
    if film not in first.arrivals:
        if first.error is None:
            called = "calls it without a tensor" if film in first.called else "does not call it"
            return UNKNOWN, f"the forward {called}"
        if film in first.failed_in:
            return UNKNOWN, f"fails at the network's own sizes: {first.error}"
        return UNKNOWN, f"the forward ended before it: {first.error}"
    if first.error is not None:
        return UNKNOWN, f"the forward ended early: {first.error}"
    rows = [{arrival.rows for arrival in run.trace.arrivals.get(film, ())} for run in runs]
    if rows[0] == {BATCH} and any(one and one != {BATCH} for one in rows):
        changed = next(run for run, one in zip(runs, rows, strict=True) if one and one != {BATCH})
        return WRONG, f"what it is given has another first size at {format_sizes(changed.sizes)}: samples are mixed"
    if len(runs) == 1:
        return UNKNOWN, "no other size was built and run"
    if fixed:
        return UNKNOWN, f"{' and '.join(fixed)} could not be changed"
    missing = next((run for run in runs if film not in run.trace.arrivals), None)
    if missing is not None:
        return UNKNOWN, f"the forward does not call it at {format_sizes(missing.sizes)}"
    return FOLLOWS, ""


def _parts(film: str, runs: Sequence[Run], widths: Sequence[tuple[int | None, int | None]]) -> str:
    """What the vector joins at the first sizes at which it does not fit."""
    index = next(at for at, pair in enumerate(widths) if None not in pair and pair[0] != pair[1])
    own, there = ([one.parts for one in run.trace.arrivals.get(film, ())] for run in (runs[0], runs[index]))
    joins = describe_parts(there[0], own[0]) if own and there else ""
    return f"; at {format_sizes(runs[index].sizes)} it {joins}" if joins else ""


def _own_parts(first: Run, parts: Sequence[Part]) -> Sequence[Part]:
    """The parts with the same names in the forward at the network's own sizes."""
    names = [part.name for part in parts]
    joined = first.trace.joined
    return next((one for one in joined if [part.name for part in one] == names), ())


def _lost(first: Trace, trace: Trace, film: str) -> Cut | None:
    """A vector whose pieces make up all of it at the network's own sizes, and only a part of it here."""
    readouts = {path for arrival in trace.arrivals.get(film, ()) for path in arrival.origin.readouts}
    for own, one in zip(first.cuts, trace.cuts, strict=False):
        if own.where == one.where and own.is_whole and not one.is_whole and one.readouts & readouts:
            return one
    return None


def _widths(film: str, trace: Trace) -> tuple[int | None, int | None]:
    """The widths wanted and given: of the first weight that does not fit, else of the first weight."""
    pairs = [(one.wanted, one.given) for one in trace.taken if one.film == film]
    misfits = [pair for pair in pairs if pair[0] != pair[1]]
    arrivals = trace.arrivals.get(film, ())
    return next(iter(misfits or pairs), (None, arrivals[0].width if arrivals else None))


def _formula(letters: Sequence[str], points: Sequence[tuple[int, ...]], widths: Sequence[int | None]) -> str:
    known = {point: width for point, width in zip(points, widths, strict=True) if width is not None}
    if len(known) < len(points) or len(points) <= HELD_OUT:
        return NO_FORMULA
    held_out = {point: known.pop(point) for point in points[-HELD_OUT:]}
    return fit(letters, known, held_out)
