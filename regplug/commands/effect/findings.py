"""The kinds of findings: what each means, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SURE, MAYBE, INFO = "sure", "maybe", "info"
ANY = "any"  # what --fail-on calls all kinds that are sure


@dataclass(frozen=True)
class Kind:
    """What a kind of finding means.

    Args:
        unit: Of the finding's number.
        why: Why it matters.
        do: What to do.
    """

    unit: str
    why: str
    do: str


@dataclass(frozen=True)
class Finding:
    """One thing that a network's conditioning does, or does not do.

    Args:
        kind: A key of ``KINDS``.
        grade: "sure", "maybe" (on drawn inputs, or judged by statistics) or "info" (no defect).
        module: Path of the module.
        number: What was measured.
        unit: What the number counts.
        why: Why it matters.
        do: What to do.
    """

    kind: str
    grade: str
    module: str
    number: float
    unit: str
    why: str
    do: str


KINDS: Mapping[str, Kind] = {
    "features-wiped": Kind(
        "largest gamma",
        "gamma is 0 and nothing leads around it: all features are 0, and layers in front get no gradient",
        "start at the identity: gamma 1, or 1 + gamma",
    ),
    "double-zero": Kind(
        "modulations that stay constant after 6 training steps",
        "the generator and the layer behind it both start at 0, so neither ever gets a gradient",
        "start one of the two at values other than 0",
    ),
    "constant-pairs": Kind(
        "share of modulations that are the same for all samples",
        "gamma and beta ignore the conditioning, which does vary",
        "check what the generator does with its input, and its last layer's weight",
    ),
    "zero-last-layer": Kind(
        "linear layers of the generator with weight 0",
        "the generator's weight is 0 in a trained network: it gives its bias, whatever it is conditioned on",
        "exclude the generator from weight decay (regplug.param_groups), then train on",
    ),
    "constant-conditioning": Kind(
        "standard deviation over samples",
        "all samples get the same conditioning vector, although the inputs differ",
        "follow the vector back to where it stops varying: a constant, a wrong key, an averaged batch",
    ),
    "stale-conditioning": Kind(
        "change of the vector after its sample's input was replaced",
        "the conditioning does not follow the inputs: it is from an earlier batch",
        "remove the cache, or make its key depend on the inputs",
    ),
    "reads-padding": Kind(
        "tokens read that are the same for all samples",
        "the readout reads padding or other constant tokens in place of registers",
        "compare its slice with layout_of(model).positions(T)",
    ),
    "reads-wrong-tokens": Kind(
        "tokens read that are no registers",
        "the readout reads tokens next to the registers",
        "compare its slice with layout_of(model).positions(T)",
    ),
    "registers-ignored": Kind(
        "registers without effect on the conditioning vector",
        "the readout gets registers that it does not use",
        "check its slice and its weights; if it should select, no action",
    ),
    "conditioning-detached": Kind(
        "trainable tensors in front of it without a gradient",
        "the output depends on the conditioning, but no gradient goes back: what computes it cannot learn",
        "remove detach() or no_grad(), or freeze those weights (requires_grad_(False))",
    ),
    "undone-by-norm": Kind(
        "share of the modulation that the next norm leaves",
        "the norm behind it divides the modulation out again",
        "apply it after the norm, or make gamma and beta vary over channels",
    ),
    "partly-undone": Kind(
        "share of the modulation that the next norm leaves",
        "the norm behind it removes what is common to all channels",
        "no action if the output uses the rest; see the column 'swap'",
    ),
    "never-loaded": Kind(
        "numbers still at their start",
        "weights have their start values in a trained network: no checkpoint filled them, or nothing trained them",
        "load with strict=True and compare the names of the missing keys",
    ),
    "swapped-pair": Kind(
        "pairs used the other way round",
        "beta multiplies and gamma is added",
        "swap the two names where the pair is unpacked",
    ),
    "pairs-unused": Kind(
        "unused parts of the generator's output",
        "the generator computes numbers that no layer reads",
        "check which pair each layer takes; build the generator for fewer layers if right",
    ),
    "saturated": Kind(
        "share of numbers at the bound",
        "the function's bound is reached: the conditioning changes nothing, and gradients are near 0",
        "scale its input down, or normalise the conditioning vector",
    ),
    "batch-mixed": Kind(
        "other samples that change with one sample's conditioning",
        "samples are conditioned on each other's vectors",
        "check repeat against repeat_interleave, and reshapes that move the batch axis",
    ),
    "no-effect": Kind(
        "effect of another sample's conditioning",
        "gamma and beta vary, and the network's output does not react",
        "check whether the modulated features are used, and gates behind them",
    ),
    "not-finite": Kind(
        "gammas and betas that are NaN or infinite",
        "the output is not a number",
        "check the conditioning vector, then the generator's weights",
    ),
    "never-called": Kind(
        "calls",
        "the forward does not run this FiLM module, or runs it without a tensor",
        "check the condition under which it runs; remove it if it is not needed",
    ),
    "at-start": Kind(
        "training steps after which it has effect, at most",
        "the network is at its start, where this modulation changes nothing: it learns from the first steps on",
        "no action; measure again after training",
    ),
    "not-varied": Kind(
        "standard deviation over samples",
        "the inputs that it is conditioned on are the same for all samples",
        "give inputs that differ, such as several time steps",
    ),
    "before-mixing": Kind(
        "standard deviation over samples",
        "registers are read before a layer lets them see the input: they are the same for all samples",
        "no action if the architecture means it; such a block does not need FiLM",
    ),
    "stochastic": Kind(
        "effect of another seed",
        "the output is partly random; all numbers here are under one seed",
        "no action",
    ),
}

# kinds that do not depend on inputs: they may be sure on drawn ones
BY_WEIGHTS = ("never-loaded", "zero-last-layer")

# kinds that are never a defect
INFO_KINDS = ("partly-undone", "at-start", "not-varied", "before-mixing", "stochastic")


def finding(kind: str, grade: str, module: str, number: float, *, detail: str = "") -> Finding:
    """A finding of a known kind.

    Args:
        kind: Its kind.
        grade: Its grade.
        module: Path of the module.
        number: What was measured.
        detail: What else to say about it.
    """
    known = KINDS[kind]
    why = f"{known.why} ({detail})" if detail else known.why
    return Finding(kind, grade, module, float(number), known.unit, why, known.do)
