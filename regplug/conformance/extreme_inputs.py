"""Registers that are no numbers, or nearly too large for any: what a program makes of them is what eager makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from regplug.bundle.nonfinite import Run, fault_of, near_the_largest, with_infinity, with_nan
from regplug.conformance.check import Check, DoesNotApplyError
from regplug.conformance.programs import program_of
from regplug.conformance.subject import Subject
from regplug.errors import ConformanceError, class_name, one_line

Inputs = Callable[[Sequence[int], torch.dtype], Iterator[tuple[str, Tensor]]]


def checks(backends: Sequence[str]) -> tuple[Check[Subject], ...]:
    """Two rows for each export backend."""
    rows = [Check(f"not-finite[{name}]", _not_finite_of(name)) for name in backends]
    rows += [Check(f"overflow[{name}]", _overflow_of(name), advisory=True) for name in backends]
    return tuple(rows)


def _not_finite_of(backend: str) -> Callable[[Subject], None]:
    def not_finite(subject: Subject) -> None:
        """NaN and infinity in the registers come out of the loaded program as out of a float64 forward.

        A runtime whose maximum passes over NaN makes a number of a broken input, which nobody notices. Other samples of
        the batch keep theirs.
        """
        program = _loaded(subject, backend)
        compare(f"program {backend!r}", program, subject, with_nan, with_infinity)

    return not_finite


def _overflow_of(backend: str) -> Callable[[Subject], None]:
    def overflow(subject: Subject) -> None:
        """Of registers whose squares overflow the program gives the float64 forward's numbers, eager's, or none.

        Runtimes overflow in other places than eager: which of two answers is right is the float64 forward's to say.
        """
        program = _loaded(subject, backend)
        compare(f"program {backend!r}", program, subject, near_the_largest)

    return overflow


def compare(what: str, run: Run, subject: Subject, *kinds: Inputs) -> None:
    """Hold a program to eager and float64 on inputs of these kinds.

    Raises:
        ConformanceError: It gives a number where there is none, or another, or none where there is one.
        DoesNotApplyError: Eager refuses such inputs.
    """
    readout = subject.trained()
    shape = (subject.spec.num_registers, subject.spec.hidden_dim)
    for kind in kinds:
        for name, given in kind(shape, subject.dtype):
            try:
                readout(given)
            except Exception as error:  # by an assert too
                raise DoesNotApplyError(f"refuses {name}: {class_name(error)}: {one_line(error)}") from error
            if fault := fault_of(run, readout, given):
                raise ConformanceError(f"{what}: registers with {name}: {fault}.")


def _loaded(subject: Subject, backend: str) -> Run:
    made = program_of(subject, backend)
    if isinstance(made, str):
        raise DoesNotApplyError(f"there is no program, see program[{backend}]")
    return made.run_flat
