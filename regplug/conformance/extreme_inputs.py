"""Checks that a program gives what eager gives for NaN, infinity, and numbers that nearly overflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from regplug.bundle.nonfinite import Run, fault_of, near_the_largest, with_infinity, with_nan
from regplug.conformance.check import Check, DoesNotApplyError
from regplug.conformance.programs import run_of
from regplug.conformance.subject import Subject
from regplug.errors import ConformanceError, class_name, one_line

Inputs = Callable[[Sequence[int], torch.dtype], Iterator[tuple[str, Tensor]]]


def checks(backends: Sequence[str]) -> tuple[Check[Subject], ...]:
    """Two checks for each export backend."""
    rows = [Check(f"not-finite[{name}]", _not_finite_of(name)) for name in backends]
    rows += [Check(f"overflow[{name}]", _overflow_of(name), advisory=True) for name in backends]
    return tuple(rows)


def _not_finite_of(backend: str) -> Callable[[Subject], None]:
    def not_finite(subject: Subject) -> None:
        """NaN and infinity in the registers give NaN and infinity in the program's output, as in a float64 forward.

        A runtime whose maximum skips NaN gives a number for a broken input, and the fault goes unnoticed. Other samples
        of the batch keep their answers.
        """
        compare(f"program {backend!r}", run_of(subject, backend), subject, with_nan, with_infinity)

    return not_finite


def _overflow_of(backend: str) -> Callable[[Subject], None]:
    def overflow(subject: Subject) -> None:
        """For registers whose squares overflow, the program gives the numbers of float64 or eager, or none.

        Runtimes overflow in other places than eager; a float64 forward decides which of two answers is right.
        """
        compare(f"program {backend!r}", run_of(subject, backend), subject, near_the_largest)

    return overflow


def compare(what: str, run: Run, subject: Subject, *kinds: Inputs) -> None:
    """Compare a program with eager and float64 on inputs of these kinds.

    Raises:
        ConformanceError: It gives a number instead of NaN or infinity, another number, or none instead of a number.
        DoesNotApplyError: Eager refuses such inputs.
    """
    readout = subject.trained()
    shape = (subject.num_registers, subject.spec.hidden_dim)
    for kind in kinds:
        for name, given in kind(shape, subject.dtype):
            try:
                readout(given)
            except Exception as error:  # also an AssertionError
                raise DoesNotApplyError(f"refuses {name}: {class_name(error)}: {one_line(error)}") from error
            if fault := fault_of(run, readout, given):
                raise ConformanceError(f"{what}: registers with {name}: {fault}.")
