"""Checks of a backbone's tokens: registers are at the layout's positions, norm and weights are the model's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from regplug.conformance.backbone_subject import BackboneSubject
from regplug.conformance.check import Check, DoesNotApplyError
from regplug.conformance.compare_layout import check_groups, check_positions, format_positions
from regplug.conformance.model_state import ModelState, model_state
from regplug.conformance.own_forward import calls_in_own_forward
from regplug.conformance.subject import TOLERANCES, close, same_bits, seeded
from regplug.errors import ConformanceError, ShapeError, SpecError

BATCH = 3
ROUNDING = 1e-4  # of the largest number: torch uses other kernels for other batch sizes
STATE_FIELDS = ("modules", "weights", "modes", "hooks")


def tokens(subject: BackboneSubject) -> str:
    """The tokens module gives finite tokens ``[B, T, D]``, of the layout's D, and T holds the layout's positions.

    A layout with another model's T, or a D from before a projection, reads past the tokens.
    """
    found = subject.read_checked()
    positions = subject.layout.positions(found.shape[1])
    sizes = ", ".join(map(str, subject.input_shape))
    return f"inputs [B, {sizes}], T = {found.shape[1]}, registers at {format_positions(positions)}"


def marks(subject: BackboneSubject) -> str:
    """Marks in the model's register parameters come out at the layout's positions, in order, and at no others.

    A layout that is off by one silently reads a class token or a patch: every shape is right, training goes on, and
    programs agree with eager. See docs/backbones.md for how registers are found.
    """
    found, layout = subject.marks, subject.layout
    registers = check_positions(found, layout.positions(found.num_tokens))
    larger = subject.marks_of_larger_inputs
    if larger is None:
        return registers
    try:
        more = check_positions(larger, layout.positions(larger.num_tokens))
        return f"{registers}; of {larger.num_tokens} tokens, {more}"
    except ShapeError as error:
        raise ConformanceError(f"layout: inputs twice as large: {error}") from error


def groups(subject: BackboneSubject) -> str:
    """The layout's other groups have the tokens that their names say, each token in one group.

    Patches are the tokens that depend on the input; class tokens are rows of parameters. A mean of patches that takes a
    register in is almost right, so nobody notices.
    """
    if not subject.layout.groups:
        raise DoesNotApplyError("the layout names no groups besides its registers")
    found = check_groups(subject.marks, subject.layout)
    larger = subject.marks_of_larger_inputs
    if larger is None:
        return found
    return f"{found}; of {larger.num_tokens} tokens, {check_groups(larger, subject.layout)}"


def normalized(subject: BackboneSubject) -> str:
    """``tokens(model, True)`` is one of the model's norms applied to ``tokens(model, False)``.

    The layout's ``normalized`` says whether the model's own forward applies it to its registers. A readout that was
    trained on normalised registers and gets others gives plausible numbers.
    """
    stated = subject.layout.normalized
    inputs = subject.checked_inputs(1)
    if stated is None:
        raise ConformanceError("layout: normalized: expected True or False of a backbone with tokens=, got None.")
    modules: dict[bool, nn.Module | None] = {}
    for choice in (False, True):
        try:
            modules[choice] = subject.tokens_module(choice)
        except SpecError:
            if choice == stated:
                raise
            modules[choice] = None
    raw_module, normed_module = modules[False], modules[True]
    if raw_module is None or normed_module is None:
        return f"{stated}; the plugin refuses {not stated}"
    network = subject.network
    with _norms_changed(network) as norms:
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
                "no norm that gives one from the other."
            )
        registers = raw[:, list(subject.layout.positions(raw.shape[1]))]
        calls = calls_in_own_forward(network, inputs, registers) if name in norms else None
        own = None if calls is None else any(call.name == name and call.before <= ROUNDING for call in calls)
    if own is not None and own != stated:
        verb = "applies" if own else "does not apply"
        raise ConformanceError(
            f"layout: normalized: expected {own}, because the model's forward {verb} {name} to its registers, got "
            f"{stated}."
        )
    return (
        f"{stated}, by {name}" if own is not None else f"{stated}, by {name}; not compared with the model's own forward"
    )


def own_forward(subject: BackboneSubject) -> str:
    """The registers are those that the model's own forward has after its last block.

    Tokens of an earlier block, or of a forward that skips a part of the model such as its positions, have the right
    shapes and plausible numbers.
    """
    module, inputs = subject.raw_tokens()[0], subject.checked_inputs(1)
    found = subject.read(module, inputs)
    if not same_bits(found, subject.read(module, inputs, 1)):
        raise DoesNotApplyError("its tokens are random, see the check deterministic")
    calls = calls_in_own_forward(subject.network, inputs, found[:, list(subject.layout.positions(found.shape[1]))])
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
    """One, two and three samples give the same T, and a sample's tokens do not depend on the other samples.

    Otherwise a server's answer to one user depends on the requests of others.
    """
    module, inputs = subject.stated_tokens, subject.checked_inputs(BATCH)
    together = subject.read(module, inputs)
    rounding = max(ROUNDING, TOLERANCES.get(together.dtype, ROUNDING))
    for count in range(1, BATCH):
        close(f"tokens of {count} samples", subject.read(module, inputs[:count]), together[:count], rounding)


def deterministic(subject: BackboneSubject) -> None:
    """In eval mode the same input gives the same bits, with any random seed.

    Dropout or drop path that stays on makes every conditioning vector noisy.
    """
    module, inputs = subject.stated_tokens, subject.checked_inputs(2)
    if not same_bits(subject.read(module, inputs, 1), subject.read(module, inputs, 2)):
        raise ConformanceError("tokens: expected the same bits for the same input in eval mode, got others.")


def shared_weights(subject: BackboneSubject) -> None:
    """Every weight of the tokens module is the model's own, has one name, and registers get gradients.

    A copy does not change when the model is trained or loaded; detached tokens train only the readout; a bundle cannot
    hold a weight with two names.
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
    for marked in subject.marks.parameters:
        if marked.name in without:
            raise ConformanceError(f"tokens: expected gradients to reach {marked.name}, got none.")


def untouched(subject: BackboneSubject) -> None:
    """Making the tokens module and reading tokens changes no module, setting, weight, mode or hook of the model.

    Its owner goes on training or serving the model, with or without a readout attached.
    """
    network, modules = subject.network, []
    # the settings of now: an earlier forward may have stored sizes and tables in some
    before = replace(subject.state_as_built, settings=model_state(network).settings)
    for choice in (True, False):
        try:
            modules.append(subject.tokens_module(choice))
        except SpecError:  # the check normalized says whether it may refuse
            continue
    _refuse_changes("asked for", before, network, (*STATE_FIELDS, "settings"))
    inputs = subject.checked_inputs(1)
    for module in modules:
        subject.read(module, inputs)
    _refuse_changes("read", before, network, STATE_FIELDS)


def _refuse_changes(step: str, before: ModelState, network: nn.Module, fields: Sequence[str]) -> None:
    after = model_state(network)
    for field in fields:
        if changed := before.changes(after, field):
            raise ConformanceError(
                f"model: expected it unchanged after its tokens were {step}, got other {field}: "
                f"{', '.join(changed[:3])}."
            )


@contextmanager
def _norms_changed(network: nn.Module) -> Iterator[dict[str, nn.Module]]:
    """The model's norm modules, with different weights inside the block: as built they are all the same."""
    norms = {
        name: module
        for name, module in network.named_modules()
        if "norm" in type(module).__name__.lower() and not [*module.children()]
    }
    old = {one: one.detach().clone() for module in norms.values() for one in module.parameters()}
    generator = torch.Generator().manual_seed(0)
    try:
        for one in old:
            one.data.add_(0.2 * torch.randn(one.shape, generator=generator).to(one))
        yield norms
    finally:
        for one, values in old.items():
            one.data.copy_(values)


def _mapping_norm(norms: dict[str, nn.Module], given: Tensor, wanted: Tensor) -> str | None:
    """The name of the norm that turns ``given`` into ``wanted``; None if there is none."""
    with torch.no_grad():
        for name, norm in norms.items():
            try:
                close(name, norm(given), wanted, ROUNDING)
                return name
            except Exception:  # a norm for another width or another kind of input
                continue
    return None


CHECKS: tuple[Check[BackboneSubject], ...] = (
    Check("untouched", untouched),
    Check("tokens", tokens),
    Check("marks", marks),
    Check("groups", groups),
    Check("normalized", normalized),
    Check("own-forward", own_forward),
    Check("batch", batch),
    Check("deterministic", deterministic),
    Check("shared-weights", shared_weights),
)
