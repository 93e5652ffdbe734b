"""Checks of a readout's mask, and of a readout that takes any number of registers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from regplug.conformance.check import Check, DoesNotApplyError
from regplug.conformance.subject import Subject, close, seeded
from regplug.errors import ConformanceError, SpecError, class_name, one_line
from regplug.nn.readouts.join_parts import JOIN
from regplug.registry.readout_inputs import takes_mask
from regplug.registry.spec import specify
from regplug.torch_private import torchscript_without_warnings

Run = Callable[..., Tensor]

BATCH = 3
PADDING = 2  # tokens that do not count, where the number of tokens is free
MORE_TOKENS = (0, 1, 8)  # than the least
VALUES = {"NaN": math.nan, "infinity": math.inf, "numbers": 3.0}


def mask_padding(subject: Subject) -> None:
    """A sample gives the same alone and padded on either side, with any padding: numbers, NaN or infinity.

    The length of the longest sample of a batch must not change the answers for the others. Code that sums products
    with the mask gives NaN for NaN, and a mean that divides by all tokens shrinks with the padding. A readout of a
    fixed number of registers is compared with itself for other padding.
    """
    free = _with_any_count(_masked(subject))
    readout = (free or subject).trained()
    for side, mask in _masks(subject.num_registers + PADDING if free else subject.num_registers):
        tokens = _tokens(subject, mask)
        wanted = _answer(readout, torch.where(mask.unsqueeze(2), tokens, 0), mask)
        if free:
            wanted = torch.cat([_answer(readout, tokens[row : row + 1, mask[row]]) for row in range(BATCH)])
        for mode, run in _runs(readout):
            for what, value in VALUES.items():
                got = _answer(run, torch.where(mask.unsqueeze(2), tokens, value), mask)
                close(f"{mode}: samples with {what} as padding on the {side}", got, wanted, subject.tolerance)


def mask_gradient(subject: Subject) -> None:
    """The padding's gradient is exactly zero and all others are finite, also if the padding is NaN.

    A mask that is applied after a layer multiplies its zero gradient by NaN, and the weights are lost in one step. A
    gradient that reaches the padding trains the backbone on tokens that do not count.
    """
    free = _with_any_count(_masked(subject))
    readout = (free or subject).trained()
    for side, mask in _masks(subject.num_registers + PADDING if free else subject.num_registers):
        for mode, run in _runs(readout):
            for what, value in VALUES.items():
                owner = f"{mode}, {what} as padding on the {side}"
                leaf = torch.where(mask.unsqueeze(2), _tokens(subject, mask), value).requires_grad_()
                readout.zero_grad()
                with seeded():
                    output = run(leaf.clone(), mask=mask)
                output.backward(torch.ones_like(output))
                _check_gradients(owner, readout, leaf.grad, mask)


def _check_gradients(owner: str, readout: nn.Module, gradient: Tensor | None, mask: Tensor) -> None:
    if gradient is None:
        raise ConformanceError(f"{owner}: registers: expected a gradient, got none.")
    if bool((gradient[~mask] != 0).any()):
        raise ConformanceError(f"{owner}: padding: expected a gradient of exactly zero, got another.")
    named = {"registers": gradient, **{f"parameter {name!r}": one.grad for name, one in readout.named_parameters()}}
    for name, one in named.items():
        if one is not None and not one.isfinite().all():
            raise ConformanceError(f"{owner}: {name}: expected a finite gradient, got inf or nan.")


def mask_empty_row(subject: Subject) -> None:
    """A sample in which no token counts is refused or gives zeros, and the other samples keep their answers.

    A mean of nothing is NaN, and so is a softmax of nothing; any other number would say something of no tokens. An
    exported graph cannot look at the mask's values, so it must give zeros.
    """
    readout = _masked(subject).trained()
    _, mask = next(_masks(subject.num_registers))
    tokens = _tokens(subject, mask)
    wanted = _answer(readout, tokens, mask)
    mask = mask.clone()
    mask[1] = False
    for mode, run in (*_runs(readout), ("exported", _exported(readout, tokens, mask))):
        try:
            got = _answer(run, tokens, mask)
        except (Exception, SystemExit):  # refused, with any message
            continue
        if not bool((got[1] == 0).all()):
            found = "NaN" if got[1].isnan().any() else f"up to {got[1].abs().max().item():.3g}"
            raise ConformanceError(
                f"{mode}: a sample without a token that counts: expected zeros or an error, got {found}."
            )
        close(f"{mode}: the samples around one without a token that counts", got[::2], wanted[::2], subject.tolerance)


def _exported(readout: nn.Module, tokens: Tensor, mask: Tensor) -> Run:
    try:
        graph: Run = torch.export.export(readout, (tokens,), {"mask": mask}).module()
    except Exception as error:
        raise ConformanceError(
            f"torch.export with a mask: expected a graph, got {class_name(error)}: {one_line(error)}"
        ) from error
    return graph


def mask_all_true(subject: Subject) -> None:
    """A mask of all tokens gives what no mask gives.

    Batches whose samples happen to have one length must not be treated differently.
    """
    readout = _masked(subject).trained()
    registers = subject.registers(BATCH)
    mask = torch.ones(registers.shape[:2], dtype=torch.bool)
    for mode, run in _runs(readout):
        close(f"{mode}: a mask of all", _answer(run, registers, mask), _answer(readout, registers), subject.tolerance)


def any_count(subject: Subject) -> None:
    """One readout reads any number of registers, also a single one, as its constructor promises by taking None.

    A deviation of one token is NaN, and code for a fixed number fails with the first longer sequence. The same weights
    give the same answer as those of a readout of a fixed number.
    """
    free = _with_any_count(subject)
    if free is None:
        raise DoesNotApplyError("its constructor needs a fixed number of registers.")
    fixed, readout = subject.trained(), free.trained()
    readout.load_state_dict(fixed.state_dict())
    registers = subject.registers(BATCH)
    close("the readout of any number", _answer(readout, registers), _answer(fixed, registers), subject.tolerance)
    least = getattr(readout, "min_tokens", 1)
    for count in (least + more for more in MORE_TOKENS):
        tokens = _tokens(subject, torch.ones(BATCH, count, dtype=torch.bool))
        wanted = _answer(readout, tokens)
        if list(wanted.shape) != [BATCH, subject.spec.cond_dim]:
            raise ConformanceError(
                f"{count} tokens: expected [{BATCH}, {subject.spec.cond_dim}], got {list(wanted.shape)}."
            )
        for mode, run in _runs(readout):
            close(f"{mode}: {count} tokens", _answer(run, tokens), wanted, subject.tolerance)


def _masked(subject: Subject) -> Subject:
    if not takes_mask(subject.built()):
        raise DoesNotApplyError("it takes no mask.")
    if subject.spec.strategy == JOIN:
        raise DoesNotApplyError("padding moves its parts' tokens; check each part's strategy by itself.")
    return subject


def _with_any_count(subject: Subject) -> Subject | None:
    """The subject with any number of registers; None if its constructor needs a fixed number."""
    spec = subject.spec
    try:
        return replace(subject, spec=specify(spec.entry, None, spec.hidden_dim, spec.options))
    except SpecError:
        return None


def _masks(count: int) -> Iterator[tuple[str, Tensor]]:
    """Masks of samples of different lengths, padded on either side."""
    lengths = torch.tensor([[max(count - 1, 1)], [1], [max(count // 2, 1)]])
    mask = torch.arange(count) < lengths
    yield "right", mask
    yield "left", mask.flip(1)


def _tokens(subject: Subject, mask: Tensor) -> Tensor:
    """Tokens for a mask, the same every time."""
    generator = torch.Generator().manual_seed(mask.shape[1])
    shape = (*mask.shape, subject.spec.hidden_dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(subject.dtype)


def _answer(run: Run, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    with torch.no_grad(), seeded():
        return run(tokens.clone()) if mask is None else run(tokens.clone(), mask=mask)


def _runs(readout: nn.Module) -> Iterator[tuple[str, Run]]:
    """The readout, and its scripted form if it can be scripted, which the check script looks at."""
    yield "eager", readout
    try:
        with torchscript_without_warnings():
            scripted = torch.jit.script(readout)
    except Exception:  # a module that TorchScript cannot read may raise anything
        return
    yield "scripted", scripted


CHECKS = (
    Check("mask-padding", mask_padding),
    Check("mask-gradient", mask_gradient),
    Check("mask-empty-row", mask_empty_row),
    Check("mask-all-true", mask_all_true),
    Check("any-count", any_count),
)
