"""Checks of a readout's output: shapes, widths and batches, and no effect that the caller did not ask for."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import pairwise
from typing import TypeGuard

import torch
from torch import Tensor, nn

from regplug.conformance.check import Check, DoesNotApplyError
from regplug.conformance.subject import TOLERANCES, Subject, close, same_bits, seeded_answer
from regplug.errors import ConformanceError, SpecError, class_name, one_line
from regplug.registry.cond_dim import stated_width
from regplug.registry.spec import ReadoutSpec, specify
from regplug.torch_private import OperationWatch

UNKNOWN_OPTION = "option_that_no_readout_has"
LARGE_BATCH, MANY = 64, 32


def constructor(subject: Subject) -> None:
    """The spec builds the same readout again, also from JSON, and an unknown option is refused.

    A bundle holds options as JSON, and weights by name, shape and value. A constructor that accepts any ``**options``
    ignores a misspelt one.
    """
    spec = subject.spec
    first = subject.built()
    if isinstance(spec.readout_class, type) and not isinstance(first, spec.readout_class):
        raise ConformanceError(f"build: expected a {spec.readout_class.__name__}, got {type(first).__name__}.")
    stored = json.loads(json.dumps(spec.as_dict()))
    again = specify(spec.entry, stored["num_registers"], stored["hidden_dim"], stored["options"])
    if again.as_dict() != stored:  # only the width can differ: the options are those of the file
        raise ConformanceError(f"options from JSON: expected {stored}, got {again.as_dict()}.")
    _check_same_state(replace(subject, spec=again).built(), first)
    _check_unknown_option(spec)


def _check_same_state(got: nn.Module, wanted: nn.Module) -> None:
    state = got.state_dict()
    if list(state) != list(wanted.state_dict()):
        raise ConformanceError(f"second build: expected weights {list(wanted.state_dict())}, got {list(state)}.")
    for name, tensor in wanted.state_dict().items():
        other = state[name]
        if not (isinstance(tensor, Tensor) and isinstance(other, Tensor)):
            continue  # an extra state may be anything
        if other.shape != tensor.shape or other.dtype != tensor.dtype:
            raise ConformanceError(
                f"second build: {name}: expected {tensor.dtype} {list(tensor.shape)}, got {other.dtype} "
                f"{list(other.shape)}."
            )
        if not same_bits(other, tensor):
            raise ConformanceError(f"second build: {name}: expected the same values from the same seed, got others.")


def _check_unknown_option(spec: ReadoutSpec) -> None:
    try:
        specify(spec.entry, spec.num_registers, spec.hidden_dim, {**spec.options, UNKNOWN_OPTION: 1})
    except SpecError:
        return
    raise ConformanceError(f"constructor: expected to refuse the unknown option {UNKNOWN_OPTION!r}, got a readout.")


def shape(subject: Subject) -> None:
    """Registers ``[B, R, D]`` give one tensor ``[B, cond_dim]``, also for a large batch.

    Another rank, or a tuple, fails a few layers later, or never.
    """
    readout = subject.trained()
    for batch in (2, LARGE_BATCH):
        _check_shape(subject, subject.answer(readout, subject.registers(batch)), batch)


def _check_shape(subject: Subject, output: Tensor, batch: int) -> None:
    wanted = [batch, subject.spec.cond_dim]
    if list(output.shape) != wanted:
        raise ConformanceError(f"answer for {batch} samples: expected {wanted}, got {list(output.shape)}.")


def dtype(subject: Subject) -> None:
    """Weights and registers of a dtype give an answer of that dtype, close to that of float64.

    Many networks run in bfloat16, and programs are compared with float64. Constants made in float32, and casts in the
    forward, break one or the other. A dtype for which torch has no kernel is skipped.
    """
    has_truth = False
    for wanted, tolerance in TOLERANCES.items():  # float64 first
        readout = subject.trained().to(wanted)
        narrowing = Narrowing()
        try:
            with narrowing.watching():
                got = subject.answer(readout, subject.registers(4, dtype=wanted))
        except RuntimeError as error:
            # torch has no class of its own for a missing kernel
            if isinstance(error, NotImplementedError) or "not implemented for" in str(error):
                continue
            raise ConformanceError(
                f"weights and registers of {wanted}: expected an answer, got {class_name(error)}: {one_line(error)}"
            ) from error
        if got.dtype != wanted:
            raise ConformanceError(f"weights and registers of {wanted}: expected {wanted}, got {got.dtype}.")
        if wanted == torch.float64:
            has_truth = True
            narrowing.refuse(got)
        elif has_truth:
            truth = subject.answer(readout.double(), subject.registers(4, dtype=wanted).double())
            close(f"answer in {wanted}", got.double(), truth, tolerance)


class Narrowing:
    """Watches a float64 forward for an operation that computes in another dtype."""

    def __init__(self) -> None:
        self.operation: str | None = None

    def watching(self) -> OperationWatch:
        """Run the forward inside it."""
        return OperationWatch(self._note)

    def _note(self, operation: str, inputs: tuple[object, ...], output: object) -> None:
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        leaves = any(_is_float(one) and one.dtype != torch.float64 for one in outputs)
        if leaves and any(isinstance(one, Tensor) and one.dtype == torch.float64 for one in inputs):
            self.operation = self.operation or operation

    def refuse(self, answer: Tensor) -> None:
        """Refuse an answer that was computed in less than float64, in part or as a whole.

        Raises:
            ConformanceError: It was.
        """
        owner = "weights and registers of torch.float64"
        if self.operation is not None:
            raise ConformanceError(f"{owner}: expected float64 throughout, got less from {self.operation}.")
        fractions = answer[answer != answer.round()]  # integers are exact in both
        if fractions.numel() and bool((fractions.float().double() == fractions).all()):
            raise ConformanceError(f"{owner}: expected float64's digits, got float32's.")


def _is_float(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.is_floating_point()


def cond_dim(subject: Subject) -> None:
    """``out_dim``, if the readout has one, and outputs in eval and train mode all have the spec's ``cond_dim``.

    The spec's was measured on the meta device; the FiLM generator is built for that width.
    """
    wanted = subject.spec.cond_dim
    readout = subject.fresh()
    stated = stated_width(subject.name, readout)
    if stated not in (None, wanted):
        raise ConformanceError(f"out_dim: expected {wanted}, which the spec says, got {stated}.")
    for batch in (2, 6):
        for training in (True, False):
            output = subject.answer(readout.train(training), subject.registers(batch))
            if output.shape[-1:] != (wanted,):
                mode = "train" if training else "eval"
                raise ConformanceError(
                    f"answer for {batch} samples in {mode} mode: expected a width of {wanted}, got "
                    f"{list(output.shape)}."
                )


def batch_0(subject: Subject) -> None:
    """An empty batch gives an empty answer.

    The last shard of a data set may be empty. A readout that is not regplug's own may refuse it: its bundles record
    that, and every loader refuses it too.
    """
    readout = subject.trained()
    try:
        output = subject.answer(readout, subject.registers(0))
    except (Exception, SystemExit) as error:  # an unchanged module may raise anything
        if subject.is_own:
            raise
        raise DoesNotApplyError(f"refuses an empty batch: {class_name(error)}: {one_line(error)}") from error
    _check_shape(subject, output, 0)


def batch_1(subject: Subject) -> None:
    """One sample gives an answer for one sample, with finite numbers.

    A squeeze or a statistic over the batch fails here, and a server mostly gets one sample.
    """
    output = subject.answer(subject.trained(), subject.registers(1))
    _check_shape(subject, output, 1)
    if not output.isfinite().all():
        raise ConformanceError("answer for one sample: expected finite numbers, got inf or nan.")


def batch_odd(subject: Subject) -> None:
    """Seven samples give seven answers.

    The last batch of an epoch may have any size; code that takes pairs or halves of a batch loses a sample.
    """
    _check_shape(subject, subject.answer(subject.trained(), subject.registers(7)), 7)


def batch_independence(subject: Subject) -> None:
    """A sample gives the same answer alone and in a batch, in any order.

    Otherwise the answer to one user depends on the requests of others, and no batch reproduces another.
    """
    readout = subject.trained()
    for batch in (4, MANY):
        registers = subject.registers(batch)
        together = subject.answer(readout, registers.clone())
        for index in range(4):
            alone = subject.answer(readout, registers[index : index + 1].clone())
            close(f"sample {index} of {batch} alone", alone, together[index : index + 1], subject.tolerance)
        reversed_order = subject.answer(readout, registers.flip(0))
        close(f"{batch} samples in another order", reversed_order, together.flip(0), subject.tolerance)


def deterministic(subject: Subject) -> None:
    """In eval mode the same registers always give the same bits, and no buffer changes.

    With dropout left on, or statistics that still change, programs cannot be compared.
    """
    readout = subject.trained()
    before = {name: tensor.clone() for name, tensor in readout.named_buffers()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # not seeded, so that random numbers show
        first, _, again = (readout(subject.registers(4, seed)) for seed in (0, 1, 0))
    if not (isinstance(first, Tensor) and isinstance(again, Tensor) and same_bits(again, first)):
        raise ConformanceError("second answer in eval mode: expected the bits of the first, got others.")
    after = dict(readout.named_buffers())
    for name, tensor in before.items():
        if name not in after or not same_bits(after[name], tensor):
            raise ConformanceError(f"buffer {name!r}: expected no change in eval mode, got other values.")


def input_unchanged(subject: Subject) -> None:
    """The call does not change the registers, in eval or train mode.

    They are a slice of the backbone's tokens: later layers would use the changed values.
    """
    for training in (False, True):
        given = subject.registers(4)
        subject.answer(subject.trained().train(training), given)
        if not same_bits(given, subject.registers(4)):
            mode = "train" if training else "eval"
            raise ConformanceError(f"registers after a call in {mode} mode: expected the same bits, got others.")


def register_slice(subject: Subject) -> None:
    """Registers with any strides give the same as a contiguous copy, with and without gradients.

    They are a slice of the tokens, at the layout's positions. Code that assumes contiguous memory fails, or reads the
    patches next to them.
    """
    readout = subject.trained()
    contexts: tuple[type[AbstractContextManager[None]], ...] = (torch.enable_grad, torch.inference_mode)
    for context in contexts:
        for name, strided in _slices(subject).items():
            copied = strided.clone(memory_format=torch.contiguous_format)
            with context():
                wanted, got = seeded_answer(readout, copied), seeded_answer(readout, strided)
            close(f"registers {name}", got, wanted, subject.tolerance)


def _slices(subject: Subject) -> dict[str, Tensor]:
    """Registers as views of a larger tensor, or with another order of strides."""
    tokens, count = subject.tokens(4), subject.num_registers
    positions = subject.layout.positions(tokens.shape[1])
    steps = {after - before for before, after in pairwise(positions)} or {1}
    registers = subject.registers(4)
    wide = torch.cat([registers, registers.flip(2)], dim=2)
    slices = {
        "in the middle of the tokens": torch.cat([registers.flip(0), registers, registers.flip(0)], dim=1)[
            :, count : 2 * count
        ],
        "that are every second token": torch.stack([registers, registers.flip(0)], dim=2).flatten(1, 2)[:, ::2],
        "stored samples last": registers.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "stored channels first": registers.transpose(1, 2).contiguous().transpose(1, 2),
        "in the middle of the channels": wide[:, :, : registers.shape[2]],
    }
    if len(steps) == 1:  # at even distances, so that a slice gives them
        slices["at the layout's positions"] = tokens[:, positions[0] : positions[-1] + 1 : steps.pop()]
    return slices


CHECKS = (
    Check("constructor", constructor),
    Check("shape", shape),
    Check("dtype", dtype),
    Check("cond-dim", cond_dim),
    Check("batch-0", batch_0),
    Check("batch-1", batch_1),
    Check("batch-odd", batch_odd),
    Check("batch-independence", batch_independence),
    Check("deterministic", deterministic),
    Check("input-unchanged", input_unchanged),
    Check("register-slice", register_slice),
)
