"""Runs a network, and measures how much of its output depends on what it is conditioned on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from regplug.commands.audit.inputs import Inputs
from regplug.commands.audit.origins import is_inside
from regplug.commands.audit.tensor_trees import tensors_in
from regplug.commands.effect.findings import BY_WEIGHTS, INFO, MAYBE, SURE, Finding, finding
from regplug.commands.effect.inputs import drawn_inputs, given_inputs, sizes_of
from regplug.commands.effect.judge_readouts import judge_readout, registers_used
from regplug.commands.effect.judge_sites import Case, judge_site
from regplug.commands.effect.judge_weights import judge_gradients, judge_loading
from regplug.commands.effect.measure import measure, transmissions
from regplug.commands.effect.mixing import judge_mixing
from regplug.commands.effect.observe import Observation, observe
from regplug.commands.effect.outputs import scale_of, varies
from regplug.commands.effect.refusals import check_names, check_options
from regplug.commands.effect.report import EffectReport
from regplug.commands.effect.start import looks_trained
from regplug.commands.effect.subject import Subject, copied, kept_random_state, other_in_eval
from regplug.errors import RegplugError, SpecError, clip, shorten, with_class
from regplug.nn.backbone import ask_description, ask_layout, build_backbone, recognise
from regplug.registry.layout import TokenLayout

DEFAULT_BATCH = 16


def effect(
    network: nn.Module,
    inputs: Any = None,
    *,
    batch: int = DEFAULT_BATCH,
    layout: TokenLayout | None = None,
    trained: bool | None = None,
    missing: Sequence[str] = (),
    shapes: Inputs | None = None,
    seed: int = 0,
    step: Callable[[str], None] = lambda step: None,
) -> EffectReport:
    """Measure how much of a network's output depends on what it is conditioned on.

    Runs a copy in eval mode, many times on one batch, with each FiLM site's and each readout's conditioning replaced
    by another sample's, by the batch's mean and by zeros. A note says which modules of the network are in train mode
    and compute something else there. The network, and all random number generators, stay as they are. Numbers are
    relative to the spread of outputs over the batch.

    Args:
        network: The network; it needs all its weights, and memory for two copies and all tensors of one forward.
        inputs: One batch: a tensor, a tuple of the forward's arguments, or a mapping of them by name. Drawn at random
            when None; then no finding but those about weights alone is "sure".
        batch: The number of samples to draw.
        layout: Where the registers sit in the sequence that readouts read; as a plugin knows it when None.
        trained: Whether the network is trained; judged by its weights when None. True is not believed of a network
            whose layers are at their start.
        missing: Names of tensors that its checkpoint did not have, as ``load_state_dict`` returns them.
        shapes: Gives the shapes of inputs to draw; found by trying when None.
        seed: Of drawn inputs, and of every forward pass.
        step: Called with a description of each step.

    Returns:
        The report: sites, readouts, and findings.

    Raises:
        SpecError: The network cannot be copied or run, or the inputs or another argument do not fit.

    Example:
        >>> from regplug_digits import load_pretrained
        >>> report = effect(load_pretrained(), batch=8)
        >>> [site.state for site in report.sites], report.defects
        (['used', 'used'], ())
    """
    check_options(batch, layout, trained, missing, seed)
    step("copying")
    with kept_random_state():
        module = copied(network)
        check_names(missing, network, module)
        known, fresh = _of_backbone(module)
        layout = layout if layout is not None else known
        sizes = _sizes(module, layout)
        step("inputs")
        if inputs is None:
            args, kwargs = drawn_inputs(module, sizes, batch, seed, shapes)
        else:
            (args, kwargs), batch = given_inputs(module, inputs)
        subject = Subject(module, args, kwargs, batch, seed)
        report = _report(subject, inputs is None, layout, sizes, trained, missing, fresh, step)
    return replace(report, notes=(*_on_modes(network), *report.notes))


def _on_modes(network: nn.Module) -> list[str]:
    """A note if the network that was given is in train mode, and this matters."""
    found = other_in_eval(network)
    if not found:
        return []
    return [
        "train mode: measured in eval mode, without dropout and with running statistics; these modules are in train "
        f"mode: {shorten([clip(one, 60) for one in found], 3)}"
    ]


def _report(
    subject: Subject,
    is_drawn: bool,
    layout: TokenLayout | None,
    sizes: dict[str, int],
    trained: bool | None,
    missing: Sequence[str],
    fresh: Callable[[], nn.Module | None],
    step: Callable[[str], None],
) -> EffectReport:
    step("following")
    name = type(subject.module).__name__
    try:
        subject.run()
    except (Exception, SystemExit) as error:  # a forward may raise anything
        raise _refused(name, with_class(error)) from error
    seen = observe(subject, sizes, layout)
    if seen.trace.error is not None:
        raise _refused(name, seen.trace.error)
    paths = [*seen.plan.films, *seen.plan.readouts]
    looks = looks_trained(subject.module, paths)
    state = looks if trained is None else None if trained and looks is False else trained
    step("interventions")
    numbers = measure(subject, seen)
    left = transmissions(subject, seen, numbers)
    step("gradients")
    slopes, found = judge_gradients(subject, seen, numbers)
    spread = sum(scale_of(one, subject.batch).spread for one in numbers.baseline[""]) or 1.0
    grade = MAYBE if is_drawn else SURE
    case = Case(subject, seen, numbers, left, layout, sizes, _constant_inputs(subject), state, grade)
    step("judging")
    sites = []
    for path in seen.plan.films:
        site, more = judge_site(path, case)
        slope = slopes.get(path)
        sites.append(replace(site, gradient=None if slope is None else slope / spread))
        found += more
    readouts = []
    for path, one in numbers.readouts.items():
        found += judge_readout(path, subject, seen, layout, state, grade)
        tokens = seen.readings[path].tokens if path in seen.readings else None
        used = None if tokens is None else registers_used(path, subject, tokens)
        readouts.append(replace(one, reacts_to=used))
    found += judge_mixing(subject, seen, numbers.baseline)
    found += judge_loading(subject.module, paths, missing, fresh() if state else None, state)
    if numbers.is_stochastic:
        found.append(finding("stochastic", INFO, "", 1.0))
    if is_drawn:
        found = [one if one.kind in BY_WEIGHTS or one.grade != SURE else replace(one, grade=MAYBE) for one in found]
    return EffectReport(
        name,
        "drawn" if is_drawn else "given",
        subject.batch,
        numbers.noise,
        {True: "trained", False: "at-start", None: "unknown"}[state],
        tuple(readouts),
        tuple(sites),
        tuple(_without_consequences(found, seen)),
        tuple(numbers.notes),
    )


def _refused(name: str, reason: str) -> SpecError:
    return SpecError(
        f"effect: {name}: expected inputs that its forward takes, got {clip(reason, 200)}; give others by inputs= "
        "(--inputs FILE)."
    )


def _without_consequences(found: Sequence[Finding], seen: Observation) -> list[Finding]:
    """The findings, without those that another one explains, the worst first."""
    causes = ("stale-conditioning", "batch-mixed", "features-wiped", "saturated", "never-loaded")
    explained = {(kind, one.module) for one in found if one.kind in causes for kind in ("no-effect", "at-start")}
    bounded = [one.module for one in found if one.kind == "saturated"]
    explained |= {("constant-pairs", path) for path in seen.plan.films for where in bounded if is_inside(where, path)}
    kept = [one for one in found if (one.kind, one.module) not in explained]
    order = {SURE: 0, MAYBE: 1, INFO: 2}
    return sorted(dict.fromkeys(kept), key=lambda one: order[one.grade])


def _constant_inputs(subject: Subject) -> frozenset[str]:
    """The names of inputs that are the same for all samples."""
    try:
        names = list(inspect.signature(subject.module.forward).parameters)
    except (TypeError, ValueError):
        names = []
    named = [(names[at] if at < len(names) else str(at), value) for at, value in enumerate(subject.args)]
    return frozenset(
        name
        for name, value in [*named, *subject.kwargs.items()]
        if not any(varies(one, subject.batch) for one in tensors_in(value))
    )


def _of_backbone(module: nn.Module) -> tuple[TokenLayout | None, Callable[[], nn.Module | None]]:
    """The layout that the network's plugin states, and how to build the network again."""
    try:
        entry = recognise(module)
        layout = ask_layout(entry, module)
    except RegplugError:  # no plugin knows it, or it has no registers
        return None, lambda: None

    def fresh() -> nn.Module | None:
        try:
            name, options = ask_description(entry, module)
            built: nn.Module = build_backbone(entry, name, **options)
        except RegplugError:  # its plugin does not describe models
            return None
        return built

    return layout, fresh


def _sizes(module: nn.Module, layout: TokenLayout | None) -> dict[str, int]:
    if layout is not None and layout.num_registers is not None:
        return {"num_registers": layout.num_registers, "hidden_dim": layout.hidden_dim}
    return sizes_of(module)
