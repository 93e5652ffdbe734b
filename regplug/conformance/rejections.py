"""Checks that a readout refuses registers of other sizes, another rank or another dtype than it was built for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from regplug.conformance.check import Check, DoesNotApplyError
from regplug.conformance.subject import TOLERANCES, Subject, close
from regplug.conformance.vector_inputs import join_in
from regplug.errors import ConformanceError, ShapeError, class_name, one_line

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64)


def refuses_num_registers(subject: Subject) -> None:
    """One register more or less is refused.

    A readout that pools accepts any number, and one that concatenates gives another width: it goes unnoticed that the
    backbone's registers are not those it was trained with.
    """
    if subject.spec.num_registers is None:
        raise DoesNotApplyError("it takes any number of registers.")
    count, width = _sizes(subject)
    _check_refusals(subject, [(2, count + 1, width), (2, count - 1, width)])


def refuses_hidden_dim(subject: Subject) -> None:
    """Tokens of another width are refused, also those with R and D swapped.

    A linear layer refuses them in its own words; an elementwise operation accepts them.
    """
    count, width = _sizes(subject)
    shapes = [(2, count, width + 1), (2, count, width - 1), (2, width, count)]
    _check_refusals(subject, (one for one in shapes if one != (2, count, width)))


def refuses_rank(subject: Subject) -> None:
    """Registers without a batch, or with one dimension too many, are refused.

    Code that flattens takes ``[R, D]`` for R samples, and sums run over the wrong dimension.
    """
    count, width = _sizes(subject)
    _check_refusals(subject, [(count, width), (2, count, width, 1), (1, 2, count, width), ()])


def refuses_dtype(subject: Subject) -> None:
    """Registers of another dtype are refused, or converted to the dtype of the weights.

    An answer that silently has another dtype doubles the cost of all that follows, or loses digits. A readout without
    weights computes in the dtype of the registers.
    """
    readout = subject.trained()
    has_weights = any(parameter.is_floating_point() for parameter in readout.parameters())
    converts = has_weights and join_in(readout) is readout  # vectors keep their dtype up to the join's end
    for given in DTYPES:
        if given == subject.dtype:
            continue
        registers = (4 * subject.registers(4)).to(given)
        try:
            got = subject.answer(readout, registers.clone())
        except (Exception, SystemExit):  # refused, with any message
            continue
        truth = subject.answer(readout, registers.to(subject.dtype))
        wanted = subject.dtype if has_weights else given
        # the mean of integers has another dtype; only its value is compared
        if got.dtype != wanted and wanted.is_floating_point:
            raise ConformanceError(
                f"registers of {given}: expected an error or an answer of {wanted}, got {got.dtype}."
            )
        tolerance = subject.tolerance if converts else max(subject.tolerance, TOLERANCES.get(given, 0.0))
        close(f"answer for registers of {given}", got.double(), truth.double(), tolerance)


def _sizes(subject: Subject) -> tuple[int, int]:
    return subject.num_registers, subject.spec.hidden_dim


def _check_refusals(subject: Subject, shapes: Iterable[Sequence[int]]) -> None:
    readout = subject.trained()
    for shape in shapes:
        try:
            got = subject.answer(readout, torch.zeros(list(shape), dtype=subject.dtype))
        except (Exception, SystemExit) as error:  # refused, with any message
            if subject.is_own:
                _check_message(subject, error, shape)
            continue
        raise ConformanceError(f"registers {list(shape)}: expected to be refused, got an answer {list(got.shape)}.")


def _check_message(subject: Subject, error: BaseException, shape: Sequence[int]) -> None:
    count = subject.spec.num_registers or "N"
    parts = (f"[B, {count}, {subject.spec.hidden_dim}]", str(list(shape)))
    if not isinstance(error, ShapeError) or any(part not in str(error) for part in parts):
        raise ConformanceError(
            f"registers {list(shape)}: expected a ShapeError with {parts[0]} and {parts[1]}, got "
            f"{class_name(error)}: {one_line(error)}"
        ) from error


CHECKS = (
    Check("refuses-num-registers", refuses_num_registers, advisory=True),
    Check("refuses-hidden-dim", refuses_hidden_dim, advisory=True),
    Check("refuses-rank", refuses_rank, advisory=True),
    Check("refuses-dtype", refuses_dtype, advisory=True),
)
