"""Checks of training: a readout pairs with a FiLM generator, has gradients, and counts its FLOPs correctly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from regplug.conformance.check import Check, DoesNotApplyError
from regplug.conformance.outputs import Narrowing
from regplug.conformance.subject import SEED, Subject, close, move_weights, seeded, seeded_answer
from regplug.errors import ConformanceError
from regplug.nn.conditioner import Conditioner
from regplug.nn.pairing import Convention, convention_of, film_family, pair
from regplug.registry.integers import is_int
from regplug.torch_private import OperationWatch

BATCH = 4
# how far from 1 or 0 a start may be: some generators start with tiny random weights
NEAR_START = 0.05
# FLOPs for each number that an operation reads or gives, on top of those that torch counts
MAX_FLOPS_PER_ELEMENT = 16
COUNTED = {str(operation) for operation in flop_registry}
STEP = 1e-6

# the conventions for which a pair that starts at these two numbers is the identity
IDENTITIES: dict[tuple[int | None, int | None], list[Convention]] = {
    (1, 0): [Convention("gamma", "gamma-first")],
    (0, 1): [Convention("gamma", "shift-first")],
    (0, 0): [Convention("1+gamma", "gamma-first"), Convention("1+gamma", "shift-first")],
}

Pairs = list[tuple[Tensor, Tensor]]


def film(subject: Subject) -> None:
    """It pairs with the FiLM generator, whose form and order are as declared; a conditioner gives gamma first.

    A swapped pair passes every shape check, and so does ``1 + gamma`` in place of ``gamma``; the initial pairs of a
    generator show which it is.
    """
    with seeded():
        generator = pair(subject.spec, subject.film, registry=subject.registry, **subject.film_options)
    generator = generator.to(subject.dtype).eval()
    family = film_family(generator, subject.registry)
    if family is not None and not family.gives_pairs:
        raise DoesNotApplyError(f"it pairs with {type(generator).__name__}, which modulates features itself.")
    convention = convention_of(generator, registry=subject.registry)
    conditioning = torch.randn(BATCH, subject.spec.cond_dim, generator=torch.Generator().manual_seed(SEED))
    _check_start(convention, _pairs_of(generator, conditioning.to(subject.dtype)))
    move_weights(generator)  # most start with pairs that do not depend on the conditioning
    readout, tokens = subject.trained(), subject.tokens(BATCH)
    conditioner = Conditioner(subject.layout, readout, generator, registry=subject.registry).eval()
    got = _pairs_of(conditioner, tokens)
    registers = tokens[:, list(subject.layout.positions(tokens.shape[1]))]
    wanted = _pairs_of(generator, subject.answer(readout, registers))
    if convention.order == "shift-first":
        wanted = [(gamma, beta) for beta, gamma in wanted]
    if len(got) != len(wanted):
        raise ConformanceError(f"conditioner: expected {len(wanted)} pairs, got {len(got)}.")
    for layer, (one, other) in enumerate(zip(got, wanted, strict=True)):
        for word, mine, theirs in zip(("gamma", "beta"), one, other, strict=True):
            close(f"conditioner: {word}_{layer}", mine, theirs, subject.tolerance)


def _pairs_of(module: nn.Module, given: Tensor) -> Pairs:
    """The pairs that a generator or a conditioner gives; refuses anything else."""
    with seeded(), torch.no_grad():
        pairs: Any = module(given)
    owner = type(module).__name__
    if not isinstance(pairs, (list, tuple)) or not pairs:
        raise ConformanceError(f"{owner}: expected [(gamma, beta), ...], got {type(pairs).__name__}.")
    for layer, one in enumerate(pairs):
        tensors = isinstance(one, (list, tuple)) and all(isinstance(part, Tensor) for part in one)
        shapes = [list(part.shape) for part in one] if tensors else type(one).__name__
        if not tensors or len(one) != 2 or shapes[0] != shapes[1] or one[0].dim() != 2 or len(one[0]) != len(given):
            raise ConformanceError(
                f"{owner}: pair {layer}: expected two tensors [{len(given)}, width] of one width, got {shapes}."
            )
    return [(first, second) for first, second in pairs]


def _check_start(declared: Convention, pairs: Pairs) -> None:
    """Refuse initial pairs that are the identity under another convention only; random ones show nothing."""
    for layer, (first, second) in enumerate(pairs):
        start = (_constant(first), _constant(second))
        matching = IDENTITIES.get(start, [declared])
        if declared not in matching:
            fits = " or ".join(f"form={one.form!r}, order={one.order!r}" for one in matching)
            raise ConformanceError(
                f"FiLM: pair {layer} starts at {start}: expected form={declared.form!r}, order={declared.order!r} as "
                f"declared, got what {fits} would be the identity for."
            )


def _constant(part: Tensor) -> int | None:
    """0 or 1, if all of the tensor is near that number."""
    return next((value for value in (0, 1) if bool(((part - value).abs() <= NEAR_START).all())), None)


def gradients(subject: Subject) -> None:
    """Every parameter and every sample's registers get a gradient, and it agrees with finite differences.

    A detached or forgotten parameter stays untrained for weeks, silently. Finite differences are taken in float64, if
    the readout has a forward in it.
    """
    readout = subject.trained().train()
    leaf = subject.registers(BATCH).requires_grad_()
    output = seeded_answer(readout, leaf.clone())  # a copy: another check looks for writes into the input
    if not output.requires_grad:
        raise ConformanceError("output: expected one that gradients flow through, got a detached one.")
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(SEED))
    output.backward(cotangent.to(output))
    for name, parameter in readout.named_parameters():
        if parameter.requires_grad:
            _check_gradient(f"parameter {name!r}", parameter.grad, constant=subject.num_registers == 1)
    _check_gradient("registers", leaf.grad)
    for index in range(BATCH):
        _check_gradient(f"registers of sample {index} of {BATCH}", leaf.grad[index] if leaf.grad is not None else None)
    _check_differences(subject)


def _check_gradient(owner: str, gradient: Tensor | None, constant: bool = False) -> None:
    """Refuse a gradient that is missing, not finite, or zero; zero is right if the output is ``constant`` in it.

    Attention over one register is such a constant.
    """
    if gradient is None:
        raise ConformanceError(f"{owner}: expected a gradient, got none.")
    if not gradient.isfinite().all():
        raise ConformanceError(f"{owner}: expected a finite gradient, got inf or nan.")
    if not constant and not gradient.any():
        raise ConformanceError(f"{owner}: expected a gradient that is not zero, got zeros.")


def _check_differences(subject: Subject) -> None:
    readout = subject.trained().double()
    registers = subject.registers(2, dtype=torch.float64)
    narrowing = Narrowing()
    try:
        with narrowing.watching():
            answer = subject.answer(readout, registers)
        narrowing.refuse(answer)
    except (Exception, SystemExit):  # no float64 forward: the check dtype reports what is wrong
        return
    if answer.dtype != torch.float64:
        return
    weights = {name: one.detach() for name, one in readout.named_parameters() if one.requires_grad}
    cotangent = torch.randn(answer.shape, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)

    def run(name: str, value: Tensor) -> Tensor:
        given, changed = (registers, {name: value}) if name else (value, {})
        with seeded():
            output: Tensor = functional_call(readout, {**weights, **changed}, (given.clone(),))
        return (output * cotangent).sum()

    for name, value in {"": registers, **weights}.items():
        _compare(run, name, value)


def _compare(run: Callable[[str, Tensor], Tensor], name: str, value: Tensor) -> None:
    """Compare the gradient of a parameter, or of the registers (no name), with finite differences, along one direction.

    ``torch.autograd.gradcheck`` does the same, but computes whole Jacobians for its message, which takes minutes.
    """
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(SEED), dtype=value.dtype)
    leaf = value.clone().requires_grad_()
    total = run(name, leaf)
    gradient = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
    got = 0.0 if gradient is None else (gradient * direction).sum().item()
    with torch.no_grad():
        rise = run(name, value + STEP * direction) - run(name, value - STEP * direction)
    wanted = rise.item() / (2 * STEP)
    if not abs(got - wanted) <= 1e-5 + 1e-3 * abs(wanted):
        owner = f"parameter {name!r}" if name else "registers"
        raise ConformanceError(
            f"{owner}: expected a gradient of {wanted:.6g} along a random direction, as finite differences give, got "
            f"{got:.6g}."
        )


def flop_count(subject: Subject) -> None:
    """``flop_count(hidden_dim)`` is what torch counts for one sample, 2 for each multiply-add, and a little more.

    The little is for elementwise operations, which torch does not count: at most 16 FLOPs for each number that one
    reads or gives. Half or twice the true count misleads anyone who compares readouts.
    """
    readout = subject.trained()
    count = getattr(readout, "flop_count", None)
    if not callable(count):
        raise DoesNotApplyError("it has no flop_count.")
    if subject.spec.num_registers is None:
        raise DoesNotApplyError("flop_count is for a fixed number of registers.")
    stated_count = count(subject.spec.hidden_dim)
    if not is_int(stated_count):
        raise ConformanceError(f"flop_count: expected an integer, got {stated_count!r}.")
    registers = subject.registers(1)
    elements = 0

    def add(operation: str, inputs: tuple[object, ...], output: object) -> None:
        nonlocal elements
        elements += _elements(operation, inputs, output)

    # torch does not know the CPU's fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, OperationWatch(add):
        subject.answer(readout, registers)
    least = counter.get_total_flops()
    most = least + MAX_FLOPS_PER_ELEMENT * elements
    if not least <= stated_count <= most:
        raise ConformanceError(f"flop_count: expected {least} to {most} for one sample, got {stated_count}.")


def _elements(operation: str, inputs: tuple[object, ...], output: object) -> int:
    """How many numbers an elementwise operation works on; none for a view."""
    given = [one for one in inputs if isinstance(one, Tensor)]
    outputs = [one for one in (output if isinstance(output, (tuple, list)) else (output,)) if isinstance(one, Tensor)]
    held = {one.untyped_storage().data_ptr() for one in given}
    made = sum(one.numel() for one in outputs if one.untyped_storage().data_ptr() not in held)
    if not made or operation.rpartition(".")[0] in COUNTED:  # torch counts a product, but not a bias added to it
        return made
    return max(made, *(one.numel() for one in given), 0)


CHECKS = (Check("film", film), Check("gradients", gradients), Check("flop-count", flop_count))
