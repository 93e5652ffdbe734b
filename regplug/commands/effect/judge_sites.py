"""Findings about FiLM sites: from numbers to what is wrong, and to each site's state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from regplug.commands.audit.tensor_trees import is_vector
from regplug.commands.effect.findings import INFO, MAYBE, SURE, Finding, finding
from regplug.commands.effect.interventions import of_arguments, swapped
from regplug.commands.effect.judge_readouts import is_before_mixing, is_constant_vector, misplaced_tokens
from regplug.commands.effect.measure import Measurements, SiteEffect
from regplug.commands.effect.observe import Modulation, Observation, observe
from regplug.commands.effect.outputs import effect_between, varies
from regplug.commands.effect.start import STEPS, after_steps, zero_layers
from regplug.commands.effect.subject import Subject
from regplug.commands.effect.wiped import wiped_grade
from regplug.errors import with_class
from regplug.nn.pairing import film_family
from regplug.registry.layout import TokenLayout

SATURATED = 0.99  # share of numbers at a bound
UNDONE, PARTLY_UNDONE = 0.05, 0.5
NEAR = 0.25  # of 0 or 1, for gammas and betas that look swapped


@dataclass
class Case:
    """What is known when sites are judged.

    Args:
        subject: The network and its inputs.
        seen: What a forward pass showed.
        numbers: What was measured.
        left: Of each modulation by its number: the share that the next norm leaves.
        layout: Where the registers sit, if that is known.
        sizes: R and D, if they are known.
        constant_inputs: Names of inputs that are the same for all samples.
        trained: Whether the network is trained; None if that is not known.
        grade: Of findings that depend on the inputs.
    """

    subject: Subject
    seen: Observation
    numbers: Measurements
    left: dict[int, float]
    layout: TokenLayout | None
    sizes: dict[str, int]
    constant_inputs: frozenset[str]
    trained: bool | None
    grade: str

    @property
    def threshold(self) -> float:
        """Effects up to this count as none."""
        return max(4 * self.numbers.noise, 1e-6)

    @cached_property
    def later(self) -> tuple[Subject, Observation] | None:
        """The network after a few training steps, and its forward pass; None if it cannot be trained."""
        try:
            moved = after_steps(self.subject)
            return None if moved is None else (moved, observe(moved, self.sizes, None, self.seen.plan))
        except Exception as error:  # a network may refuse to be trained in eval mode
            self.numbers.notes.append(f"training steps: not measured: {with_class(error)}")
            return None


def judge_site(path: str, case: Case) -> tuple[SiteEffect, list[Finding]]:
    """The site with its state, and the findings about it."""
    site, found = _judged(path, case)
    if site.state == "unused" and site.swap is not None and site.swap > case.threshold:
        site = replace(site, state="used")
    return site, found


def _judged(path: str, case: Case) -> tuple[SiteEffect, list[Finding]]:
    site, seen, batch = case.numbers.sites[path], case.seen, case.subject.batch
    modulations = seen.of(path)
    found = [*_wiring(path, case, modulations)]
    left = {
        scales: [case.left[m.number] for m in modulations if m.scales is scales and m.number in case.left]
        for scales in (True, False)
    }
    site = replace(
        site,
        gamma_transmission=min(left[True], default=None),
        beta_transmission=min(left[False], default=None),
    )
    conditioning = seen.conditioning.get(path, [])
    if not modulations and path not in seen.trace.called:
        return site, [*found, finding("never-called", MAYBE, path, 0)]
    bad = sum(int((~torch.isfinite(one.vector)).sum()) for one in modulations)
    if bad:
        return site, [*found, finding("not-finite", SURE, path, bad)]
    if conditioning and not any(varies(one, batch) for one in conditioning):
        state, more = _constant(path, case)
        return replace(site, state=state), [*found, *more]
    if wiped := _wiped(path, case):
        return replace(site, state="unused"), [*found, wiped]
    constant = _constant_in_all_calls(path, seen, batch)
    if constant:
        state, more = _constant_pairs(path, case, constant, len(modulations))
        if more or len(constant) == len(modulations):
            return replace(site, state=state), [*found, *more]
    found += (norms := _norms(path, case, modulations))
    if site.swap is None:
        return site, found
    if site.swap <= case.threshold:
        if any(one.kind == "undone-by-norm" for one in norms):
            return replace(site, state="unused"), found
        state, more = _without_effect(path, case, site)
        return replace(site, state=state), [*found, *more]
    return replace(site, state="at-start" if constant else "used"), found


def _constant_in_all_calls(path: str, seen: Observation, batch: int) -> list[Modulation]:
    """The gammas and betas that are the same for all samples in every call of the site."""
    return seen.in_all_calls(path, lambda one: not varies(one.vector, batch))


def _constant(path: str, case: Case) -> tuple[str, list[Finding]]:
    """Conditioning that is the same for all samples."""
    sources, batch = case.seen.plan.sources.get(path), case.subject.batch
    if sources and sources.inputs and not sources.readouts and sources.inputs <= case.constant_inputs:
        return "not-varied", [finding("not-varied", INFO, path, 0.0)]
    readings = [case.seen.readings[one] for one in (sources.readouts if sources else ()) if one in case.seen.readings]
    if readings and all(is_before_mixing(one, case.layout, batch, case.trained) for one in readings):
        return "before-mixing", []  # the finding is the readout's
    if any(misplaced_tokens(one, case.layout) or is_constant_vector(one, batch) for one in readings):
        return "constant", []  # as before
    return "constant", [finding("constant-conditioning", case.grade, path, 0.0)]


def _constant_pairs(path: str, case: Case, constant: Sequence[Modulation], count: int) -> tuple[str, list[Finding]]:
    """Gammas or betas that are the same for all samples, although the conditioning varies."""
    part = case.subject.paths.get(path)
    if case.trained:
        zero = [] if part is None else zero_layers(part)
        if zero:
            trainable = any(one.requires_grad for one in part.parameters()) if part is not None else False
            grade = SURE if trainable else INFO
            return "constant", [finding("zero-last-layer", grade, path, len(zero), detail=", ".join(zero) or path)]
        share = len(constant) / count
        return "constant", [finding("constant-pairs", case.grade, path, share)]
    if case.later is None:
        return "at-start", [finding("at-start", INFO, path, STEPS, detail="not confirmed by training steps")]
    moved, seen = case.later
    stuck = _constant_in_all_calls(path, seen, moved.batch)
    if stuck:
        return "unused", [
            finding("double-zero", MAYBE if case.trained is None else SURE, path, len(stuck), detail=f"of {count}")
        ]
    return "at-start", [finding("at-start", INFO, path, STEPS)]


def _without_effect(path: str, case: Case, site: SiteEffect) -> tuple[str, list[Finding]]:
    """Pairs that vary, without effect on the output."""
    if not case.trained and case.later is not None and case.subject.hooked(path) is not None:
        moved, _ = case.later
        swap = partial(swapped, moved.batch)
        change = {path: of_arguments(case.seen.plan.conditioning.get(path, ()), swap)}
        after = effect_between(moved.run()[""], moved.run(before=change)[""], moved.batch)
        if after is not None and after > 1e-6:
            return "at-start", [finding("at-start", INFO, path, STEPS)]
    return "unused", [finding("no-effect", case.grade, path, site.swap or 0.0)]


def _wiped(path: str, case: Case) -> Finding | None:
    """A gamma of 0, behind which nothing depends on the input."""
    zero = case.seen.in_all_calls(path, lambda one: one.scales and not bool(one.vector.any()))
    for where in dict.fromkeys(one.where for one in zero):
        if grade := wiped_grade(case.subject, where, case.seen.modulations):
            return finding("features-wiped", grade, path, 0.0)
    return None


def _norms(path: str, case: Case, modulations: Sequence[Modulation]) -> list[Finding]:
    """What the next norm leaves of each modulation."""
    undone = [(one, share) for one, share in case.numbers.undone if one.film == path]
    if undone:
        one, share = min(undone, key=lambda pair: pair[1])
        parts = " and ".join(sorted({"gamma" if one.scales else "beta" for one, _ in undone}))
        return [finding("undone-by-norm", SURE, path, share, detail=f"{parts} in {one.where or 'the forward'}")]
    low = [case.left[one.number] for one in modulations if case.left.get(one.number, 1.0) < PARTLY_UNDONE]
    return [finding("partly-undone", INFO, path, min(low))] if low else []


def _wiring(path: str, case: Case, modulations: Sequence[Modulation]) -> list[Finding]:
    """What does not depend on how far the network is trained."""
    found = []
    if path in case.seen.unused:
        missing, total = case.seen.unused[path]
        found.append(finding("pairs-unused", SURE, path, missing, detail=f"of {total}"))
    for where, share in case.seen.saturated.items():
        if share >= SATURATED and (where == path or where.startswith(f"{path}.")):
            found.append(finding("saturated", case.grade, where, share))
    if swapped := _swapped(path, case, modulations):
        found.append(swapped)
    return found


def _swapped(path: str, case: Case, modulations: Sequence[Modulation]) -> Finding | None:
    """Gamma and beta in each other's place: known by the generator's family, else by what they look like."""
    part = case.subject.paths.get(path)
    family = None if part is None else film_family(part)
    known = [one for one in modulations if one.output is not None]
    if family is not None and family.gives_pairs and known:
        first_scales = family.order == "gamma-first"
        wrong = [
            one for one in known if one.output is not None and ((one.output % 2 == 0) == first_scales) != one.scales
        ]
        return finding("swapped-pair", SURE, path, len(wrong) / 2) if wrong else None
    site = case.numbers.sites[path]
    if site.gamma is None or site.beta is None or not all(is_vector(one.vector) for one in modulations):
        return None
    gammas = all(abs(float(one.vector.double().mean())) < NEAR for one in modulations if one.scales)
    betas = all(abs(float(one.vector.double().mean()) - 1) < NEAR for one in modulations if not one.scales)
    return (
        finding("swapped-pair", MAYBE, path, len(modulations) / 2, detail="judged by their means")
        if gammas and betas
        else None
    )
