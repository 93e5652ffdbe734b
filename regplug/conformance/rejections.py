"""What a readout refuses: registers of other sizes, another rank or another dtype than it was built for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from regplug.conformance.check import Check
from regplug.conformance.subject import TOLERANCES, Subject, close
from regplug.errors import ConformanceError, ShapeError, class_name, one_line

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64)


def refuses_num_registers(subject: Subject) -> None:
    """One register more or less is refused.

    A readout that pools answers for any number, and one that concatenates gives another width: nobody notices that
    the backbone's registers are not those it was trained with.
    """
    number, width = _sizes(subject)
    _refuses(subject, [(2, number + 1, width), (2, number - 1, width)])


def refuses_hidden_dim(subject: Subject) -> None:
    """Tokens of another width are refused, those with R and D swapped among them.

    A layer that is as wide says so in its own words; one by element does not say anything.
    """
    number, width = _sizes(subject)
    shapes = [(2, number, width + 1), (2, number, width - 1), (2, width, number)]
    _refuses(subject, (one for one in shapes if one != (2, number, width)))


def refuses_rank(subject: Subject) -> None:
    """Registers without a batch, or with a size too many, are refused.

    ``[R, D]`` is taken for R samples by whatever flattens, and sums run over another dimension than meant.
    """
    number, width = _sizes(subject)
    _refuses(subject, [(number, width), (2, number, width, 1), (1, 2, number, width), ()])


def refuses_dtype(subject: Subject) -> None:
    """Registers of another dtype are an error, or are converted to that of the weights.

    Silently another dtype of the answer doubles what it costs, or loses digits, in all that follows. A readout
    without weights computes in the dtype of the registers.
    """
    readout = subject.trained()
    has_weights = any(parameter.is_floating_point() for parameter in readout.parameters())
    for given in DTYPES:
        if given == subject.dtype:
            continue
        registers = (4 * subject.registers(4)).to(given)
        try:
            got = subject.answer(readout, registers.clone())
        except (Exception, SystemExit):  # refused, in whatever words
            continue
        truth = subject.answer(readout, registers.to(subject.dtype))
        wanted = subject.dtype if has_weights else given
        if got.dtype != wanted and wanted.is_floating_point:  # a mean of integers is none; its value is compared
            raise ConformanceError(
                f"registers of {given}: expected an error or an answer of {wanted}, got {got.dtype}."
            )
        tolerance = subject.tolerance if has_weights else max(subject.tolerance, TOLERANCES.get(given, 0.0))
        close(f"answer for registers of {given}", got.double(), truth.double(), tolerance)


def _sizes(subject: Subject) -> tuple[int, int]:
    return subject.spec.num_registers, subject.spec.hidden_dim


def _refuses(subject: Subject, shapes: Iterable[Sequence[int]]) -> None:
    readout = subject.trained()
    for shape in shapes:
        try:
            got = subject.answer(readout, torch.zeros(list(shape), dtype=subject.dtype))
        except (Exception, SystemExit) as error:  # refused, in whatever words
            if subject.is_own:
                _check_words(subject, error, shape)
            continue
        raise ConformanceError(f"registers {list(shape)}: expected to be refused, got an answer {list(got.shape)}.")


def _check_words(subject: Subject, error: BaseException, shape: Sequence[int]) -> None:
    number, width = _sizes(subject)
    words = (f"[B, {number}, {width}]", str(list(shape)))
    if not isinstance(error, ShapeError) or any(word not in str(error) for word in words):
        raise ConformanceError(
            f"registers {list(shape)}: expected a ShapeError with {words[0]} and {words[1]}, got "
            f"{class_name(error)}: {one_line(error)}"
        ) from error


CHECKS = (
    Check("refuses-num-registers", refuses_num_registers, advisory=True),
    Check("refuses-hidden-dim", refuses_hidden_dim, advisory=True),
    Check("refuses-rank", refuses_rank, advisory=True),
    Check("refuses-dtype", refuses_dtype, advisory=True),
)
