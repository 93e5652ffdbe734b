"""Measures each FiLM site and each readout: what changes when its conditioning is another sample's, the mean, zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from regplug.commands.effect.interventions import Replaced, interventions, of_arguments, of_output, swapped
from regplug.commands.effect.observe import Modulation, Observation
from regplug.commands.effect.outputs import change_between, effect_between, relative, rows, varies
from regplug.commands.effect.subject import Outputs, Subject
from regplug.errors import with_class

SMALLEST_CHANGE = 1e-5  # relative, of what goes into a norm: smaller changes are rounding


@dataclass(frozen=True)
class Statistics:
    """The gammas or the betas of one site over the batch.

    Args:
        low: The smallest.
        high: The largest.
        mean: Their mean.
        std: The mean over channels of the standard deviation over samples.
        dead: The share of channels that are the same for all samples.
    """

    low: float
    high: float
    mean: float
    std: float
    dead: float


@dataclass(frozen=True)
class SiteEffect:
    """How much of the output depends on one FiLM site's conditioning.

    Numbers are relative to the spread of outputs over the batch: 0 is unused, about 1 decides the output; None is not
    measured.

    Args:
        module: The site's path.
        label: Its class and family.
        applied_at: Paths of the modules in whose forwards it scales or shifts.
        sources: What its conditioning comes from.
        swap: With another sample's conditioning.
        mean: With the batch's mean.
        zero: With zeros.
        gradient: The output's gradient, times the conditioning's standard deviation.
        gamma: What features are multiplied by.
        beta: What is added to features.
        gamma_transmission: The share of a change of gamma that the next norm leaves; None if there is no next norm.
        beta_transmission: The same of beta.
        state: "used", "unused", "at-start", "constant", "not-varied", "before-mixing" or "not-measured".
    """

    module: str
    label: str
    applied_at: tuple[str, ...]
    sources: tuple[str, ...]
    swap: float | None = None
    mean: float | None = None
    zero: float | None = None
    gradient: float | None = None
    gamma: Statistics | None = None
    beta: Statistics | None = None
    gamma_transmission: float | None = None
    beta_transmission: float | None = None
    state: str = "not-measured"


@dataclass(frozen=True)
class ReadoutEffect:
    """How much of the output depends on one readout, as in ``SiteEffect``.

    Args:
        module: The readout's path.
        label: Its class.
        swap: With another sample's conditioning vector.
        mean: With the batch's mean.
        zero: With zeros.
        reacts_to: The registers, by number, to which the conditioning vector reacts; None if not measured.
        reads: The positions of the tokens that it reads; None if not found.
    """

    module: str
    label: str
    swap: float | None = None
    mean: float | None = None
    zero: float | None = None
    reacts_to: tuple[int, ...] | None = None
    reads: tuple[int, ...] | None = None


@dataclass
class Measurements:
    """The numbers of one network on one batch.

    Args:
        baseline: Outputs of the network and of the modules around the sites.
        noise: The effect of running twice.
        is_stochastic: Whether another seed changes the output.
        sites: Of each FiLM site.
        readouts: Of each readout.
        undone: Modulations that the next norm undoes, each with what is left.
        notes: What could not be measured, and why.
    """

    baseline: Outputs
    noise: float
    is_stochastic: bool
    sites: dict[str, SiteEffect] = field(default_factory=dict)
    readouts: dict[str, ReadoutEffect] = field(default_factory=dict)
    undone: list[tuple[Modulation, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def around(paths: Sequence[str], subject: Subject) -> list[str]:
    """The modules around these, without the network itself, the outermost first."""
    found: dict[str, None] = {}
    for path in paths:
        parts = path.split(".") if path else []
        for length in range(1, len(parts) + 1):
            one = ".".join(parts[:length])
            if one in subject.paths:
                found[one] = None
    return list(found)


def measure(subject: Subject, seen: Observation) -> Measurements:
    """Run the network with each site's and each readout's conditioning replaced."""
    watched = ["", *around([one.where for one in seen.modulations], subject)]
    baseline = subject.run(watched)
    noise = effect_between(baseline[""], subject.run()[""], subject.batch)
    other = effect_between(baseline[""], subject.run(seed=subject.seed + 1)[""], subject.batch)
    found = Measurements(baseline, noise or 0.0, (other or 0.0) > 10 * (noise or 0.0) + 1e-6)
    changes = interventions(subject.batch)
    if not baseline[""]:
        found.notes.append("effects: not measured: the network returns no floating-point tensor")
    for path, label in seen.plan.films.items():
        modulations = seen.of(path)
        numbers: dict[str, float | None] = {}
        for name, change in changes.items():
            if subject.hooked(path) is not None and path in seen.trace.called:
                before = {path: of_arguments(seen.plan.conditioning.get(path, ()), change)}
                numbers[name] = _tried(found, subject, path, name, before=before)
            elif modulations and name != "zero":  # of a weight without a module: the pairs are swapped instead
                mode = Replaced(subject.module, {one.number: one.place for one in modulations}, change)
                numbers[name] = _tried(found, subject, path, name, mode=mode)
        sources = seen.plan.sources.get(path)
        found.sites[path] = SiteEffect(
            path,
            label,
            tuple(dict.fromkeys(one.where for one in modulations)),
            tuple(sources.names()) if sources else (),
            numbers.get("swap"),
            numbers.get("mean"),
            numbers.get("zero"),
            gamma=statistics([one.vector for one in modulations if one.scales], subject.batch),
            beta=statistics([one.vector for one in modulations if not one.scales], subject.batch),
        )
    for path in seen.plan.readouts:
        if subject.hooked(path) is None:
            continue  # registers that a forward reads without a module
        numbers = {
            name: _tried(found, subject, path, name, after={path: of_output(change)})
            for name, change in changes.items()
        }
        reading = seen.readings.get(path)
        reads = tuple(one[0] for one in reading.positions) if reading and reading.positions else None
        label = type(subject.paths[path]).__name__
        found.readouts[path] = ReadoutEffect(
            path, label, numbers["swap"], numbers["mean"], numbers["zero"], reads=reads
        )
    return found


def _tried(found: Measurements, subject: Subject, path: str, name: str, **changes: object) -> float | None:
    try:
        outputs = subject.run(**changes)  # type: ignore[arg-type]
    except Exception as error:  # a network may refuse what it is not used to
        found.notes.append(f"{path}: {name}: not measured: {with_class(error)}")
        return None
    return effect_between(found.baseline[""], outputs[""], subject.batch)


def statistics(vectors: Sequence[Tensor], batch: int) -> Statistics | None:
    """Statistics of all gammas, or all betas, of a site together; None if it has none."""
    if not vectors:
        return None
    wide = [rows(one, batch) for one in vectors]
    spread = [torch.zeros(one.shape[1]) if one.shape[0] == 1 else one.std(dim=0).cpu() for one in wide]
    dead = [
        spread_of <= 32 * torch.finfo(vector.dtype).eps * numbers.abs().max().cpu()
        for vector, numbers, spread_of in zip(vectors, wide, spread, strict=True)
    ]
    numbers = torch.cat([one.flatten().cpu() for one in wide])
    return Statistics(
        float(numbers.min()),
        float(numbers.max()),
        float(numbers.mean()),
        float(torch.cat(spread).mean()),
        float(torch.cat(dead).double().mean()),
    )


def transmissions(subject: Subject, seen: Observation, found: Measurements) -> dict[int, float]:
    """For each modulation by its number: the share of a change of its vector that the next norm leaves."""
    base = Replaced(subject.module, {})
    subject.run(mode=base)
    left: dict[int, float] = {}
    for one in seen.modulations:
        if one.result is None or not varies(one.vector, subject.batch):
            continue
        mode = Replaced(subject.module, {one.number: one.place}, partial(swapped, subject.batch))
        outer = [path for path in around([one.where], subject) if found.baseline.get(path)][:1] or [""]
        try:
            outputs = subject.run(outer, mode=mode)
        except Exception as error:  # as above
            found.notes.append(f"{one.where}: transmission: not measured: {with_class(error)}")
            continue
        if (
            mode.result is None
            or mode.result.shape != one.result.shape
            or len(mode.norms.calls) != len(base.norms.calls)
        ):
            continue
        change = relative(one.result, mode.result)
        for (given, result), (new_given, new_result) in zip(base.norms.calls, mode.norms.calls, strict=True):
            if given.shape == new_given.shape and (into := relative(given, new_given)) > SMALLEST_CHANGE:
                left[one.number] = relative(result, new_result) / into
                block = change_between(found.baseline[outer[0]], outputs[outer[0]], subject.batch)
                if left[one.number] < 0.05 and change and block is not None and block / change < 0.05:
                    found.undone.append((one, left[one.number]))
                break
    return left
