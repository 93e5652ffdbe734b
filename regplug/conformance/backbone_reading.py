"""How a backbone's tokens are read: where its registers are in them, whether they come normalised, whose weights."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from regplug.conformance.backbone_subject import BackboneSubject, State, state_of
from regplug.conformance.check import Check, DoesNotApplyError
from regplug.conformance.own_forward import watch_own_forward
from regplug.conformance.placement import judge, listed
from regplug.conformance.subject import TOLERANCES, close, same_bits, seeded
from regplug.errors import ConformanceError, ShapeError, SpecError

BATCH = 3
ROUNDING = 1e-4  # of the largest number: other batch sizes take other kernels
STATES = ("modules", "weights", "modes", "hooks")


def tokens(subject: BackboneSubject) -> str:
    """The tokens module gives finite tokens ``[B, T, D]``, of the layout's D, and T holds the layout's positions.

    A layout is a statement about these tokens: a T of another model, or a D before a projection, reads past them.
    """
    found = subject.read_checked()
    positions = subject.layout.positions(found.shape[1])
    sizes = ", ".join(map(str, subject.input_shape))
    return f"inputs [B, {sizes}], T = {found.shape[1]}, registers at {listed(positions)}"


def marks(subject: BackboneSubject) -> str:
    """A mark in each of the model's register parameters is found at the layout's position, in order, and none is left.

    A layout that is off by one reads a class token or a patch, silently: every shape is right, training goes on, and
    programs agree with eager. See docs/backbones.md for how registers are found.
    """
    found = subject.findings
    where = judge(found, subject.layout.positions(found.num_tokens))
    larger = subject.findings_of_larger
    if larger is None:
        return where
    try:
        return f"{where}; of {larger.num_tokens} tokens, {judge(larger, subject.layout.positions(larger.num_tokens))}"
    except ShapeError as error:
        raise ConformanceError(f"layout: inputs twice as large: {error}") from error


def normalized(subject: BackboneSubject) -> str:
    """``tokens(model, True)`` is a norm of the model on ``tokens(model, False)``; the layout says how registers come.

    The layout's ``normalized`` is what the model's own forward does to its registers. A readout that was trained on
    normalised registers and gets others answers with plausible numbers.
    """
    stated = subject.layout.normalized
    inputs = subject.checked_inputs(1)
    if stated is None:
        raise ConformanceError("layout: normalized: expected True or False of a backbone with tokens=, got None.")
    ways: dict[bool, nn.Module | None] = {}
    for way in (False, True):
        try:
            ways[way] = subject.tokens_module(way)
        except SpecError:
            if way == stated:
                raise
            ways[way] = None
    raw_module, normed_module = ways[False], ways[True]
    if raw_module is None or normed_module is None:
        return f"{stated}; the plugin refuses {not stated}"
    network = subject.network
    with _norms_moved(network) as norms:
        raw, normed = subject.read(raw_module, inputs), subject.read(normed_module, inputs)
        if same_bits(raw, normed):
            raise ConformanceError("tokens: expected the final norm with normalized=True alone, got the same tokens.")
        copied = {f"tokens.{name}": one for name, one in normed_module.named_modules()}  # shared-weights reports these
        name = _mapping_norm(norms, raw, normed) or _mapping_norm(copied, raw, normed)
        if name is None and _mapping_norm(norms, normed, raw) is not None:
            raise ConformanceError("tokens: expected the final norm with normalized=True, got it with False.")
        if name is None:
            raise ConformanceError(
                "tokens: expected those of normalized=True to be one norm module of the model on those of False, got "
                "no norm that makes the one of the other."
            )
        registers = raw[:, list(subject.layout.positions(raw.shape[1]))]
        calls = watch_own_forward(network, inputs, registers) if name in norms else None
        own = None if calls is None else any(call.name == name and call.before <= ROUNDING for call in calls)
    if own is not None and own != stated:
        said = "applies" if own else "does not apply"
        raise ConformanceError(
            f"layout: normalized: expected {own}, because the model's forward {said} {name} to its registers, got "
            f"{stated}."
        )
    return (
        f"{stated}, by {name}"
        if own is not None
        else f"{stated}, by {name}; the model's own forward could not be asked"
    )


def own_forward(subject: BackboneSubject) -> str:
    """The registers that are read are those that the model's own forward has after its last block.

    Tokens of an earlier block, or of a forward that leaves out a part of the model such as its positions, have the
    right shapes and plausible numbers.
    """
    module, inputs = subject.raw_tokens()[0], subject.checked_inputs(1)
    found = subject.read(module, inputs)
    if not same_bits(found, subject.read(module, inputs, 1)):
        raise DoesNotApplyError("its tokens are random, as the check deterministic says")
    calls = watch_own_forward(subject.network, inputs, found[:, list(subject.layout.positions(found.shape[1]))])
    if calls is None:
        raise DoesNotApplyError("the model's own forward takes other inputs than its tokens module")
    for call in calls:
        if call.is_block and call.before <= ROUNDING and call.before < call.after:
            raise ConformanceError(
                f"tokens: expected the registers after the last block, got those that {call.name} still takes in the "
                "model's own forward."
            )
    seen = next((call.name for call in calls if min(call.before, call.after) <= ROUNDING), None)
    if seen is None and not any(call.is_block for call in calls):
        raise DoesNotApplyError("no module of the model's own forward takes its tokens")
    if seen is None:
        raise ConformanceError(
            "tokens: expected the registers that the model's own forward has, got others: no module of it takes or "
            "gives them."
        )
    return f"seen in {seen}"


def batch(subject: BackboneSubject) -> None:
    """One, two and three samples give the same T, and each sample's tokens do not depend on the others.

    Else what a server answers depends on who else asks.
    """
    module, inputs = subject.stated_tokens, subject.checked_inputs(BATCH)
    together = subject.read(module, inputs)
    rounding = max(ROUNDING, TOLERANCES.get(together.dtype, ROUNDING))
    for count in range(1, BATCH):
        close(f"tokens of {count} samples", subject.read(module, inputs[:count]), together[:count], rounding)


def deterministic(subject: BackboneSubject) -> None:
    """In eval mode the same input gives the same tokens to the bit, whatever the random numbers.

    Dropout or drop path that stays on makes every conditioning vector noisy.
    """
    module, inputs = subject.stated_tokens, subject.checked_inputs(2)
    if not same_bits(subject.read(module, inputs, 1), subject.read(module, inputs, 2)):
        raise ConformanceError("tokens: expected the same bits for the same input in eval mode, got others.")


def shared_weights(subject: BackboneSubject) -> None:
    """Every weight of the tokens module is the model's own, under one name, and gradients reach the registers'.

    A copy stays as it was when the model is trained or loaded; detached tokens train the readout alone; a weight under
    two names has no place in a bundle.
    """
    module, inputs = subject.stated_tokens, subject.checked_inputs(1)
    own = {id(one) for one in subject.network.parameters()}
    for name, parameter in module.named_parameters():
        if id(parameter) not in own:
            raise ConformanceError(f"tokens: {name}: expected the model's own parameter, got another.")
    names: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if (first := names.setdefault(id(parameter), name)) != name:
            raise ConformanceError(f"tokens: {name}: expected one name for each weight, got {first} too.")
    parameters = {name: one for name, one in module.named_parameters() if one.requires_grad}
    with torch.enable_grad(), seeded():
        found = module(inputs)
        if not found.requires_grad or not parameters:
            raise ConformanceError("tokens: expected gradients to reach the model's weights, got tokens without any.")
        reached = torch.autograd.grad(found.float().square().sum(), list(parameters.values()), allow_unused=True)
    without = {name for name, gradient in zip(parameters, reached, strict=True) if gradient is None}
    for marked in subject.findings.parameters:
        if marked.name in without:
            raise ConformanceError(f"tokens: expected gradients to reach {marked.name}, got none.")


def untouched(subject: BackboneSubject) -> None:
    """Asking for tokens and reading them leaves the model as it was: modules, settings, weights, modes and hooks.

    The model goes on being trained or served by its owner, with a readout attached or without.
    """
    network, modules = subject.network, []
    # settings as they are now: an earlier forward may have kept sizes and tables in some
    before = replace(subject.state_as_built, settings=state_of(network).settings)
    for way in (True, False):
        try:
            modules.append(subject.tokens_module(way))
        except SpecError:  # the other check says whether it may refuse
            continue
    _refuse_changes("asked for", before, network, (*STATES, "settings"))
    inputs = subject.checked_inputs(1)
    for module in modules:
        subject.read(module, inputs)
    _refuse_changes("read", before, network, STATES)


def _refuse_changes(what: str, before: State, network: nn.Module, words: Sequence[str]) -> None:
    after = state_of(network)
    for word in words:
        old, new = getattr(before, word), getattr(after, word)
        same = operator.is_ if word in ("modules", "settings") else operator.eq
        if differing := sorted(name or "itself" for name in {*old, *new} if not same(old.get(name), new.get(name))):
            raise ConformanceError(
                f"model: expected it unchanged after its tokens were {what}, got other {word}: "
                f"{', '.join(differing[:3])}."
            )


@contextmanager
def _norms_moved(network: nn.Module) -> Iterator[dict[str, nn.Module]]:
    """The model's norm modules, each with weights of its own for a while: as built they are all alike."""
    norms = {
        name: module
        for name, module in network.named_modules()
        if "norm" in type(module).__name__.lower() and not [*module.children()]
    }
    kept = {one: one.detach().clone() for module in norms.values() for one in module.parameters()}
    generator = torch.Generator().manual_seed(0)
    try:
        for one in kept:
            one.data.add_(0.2 * torch.randn(one.shape, generator=generator).to(one))
        yield norms
    finally:
        for one, values in kept.items():
            one.data.copy_(values)


def _mapping_norm(norms: dict[str, nn.Module], given: Tensor, wanted: Tensor) -> str | None:
    """The name of the norm that makes ``wanted`` of ``given``."""
    with torch.no_grad():
        for name, norm in norms.items():
            try:
                close(name, norm(given), wanted, ROUNDING)
                return name
            except Exception:  # a norm of another width, of images, or of another kind of input
                continue
    return None


CHECKS: tuple[Check[BackboneSubject], ...] = (
    Check("untouched", untouched),
    Check("tokens", tokens),
    Check("marks", marks),
    Check("normalized", normalized),
    Check("own-forward", own_forward),
    Check("batch", batch),
    Check("deterministic", deterministic),
    Check("shared-weights", shared_weights),
)
