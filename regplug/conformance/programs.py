"""What a readout becomes: programs of every export backend, equal to eager and guarded against wrong input."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from regplug.bundle.contents import BundleContents
from regplug.bundle.export import export
from regplug.bundle.load import load
from regplug.bundle.program import LoadedProgram
from regplug.bundle.verify import wrong_inputs
from regplug.conformance.check import Check, DoesNotApplyError
from regplug.conformance.subject import Subject, close, registry_for
from regplug.errors import ConformanceError, PluginError, ShapeError, class_name, one_line
from regplug.format.manifest import InputSpec
from regplug.format.read_bundle import read_bundle
from regplug.registry.missing import missing_package, wants
from regplug.registry.references import load_reference, reference_of
from regplug.registry.tracebacks import show_traceback

THREADS, CALLS = 4, 8


@dataclass(frozen=True)
class NotApplicable:
    """Why a backend cannot be tried here, which is no fault of the readout."""

    reason: str


# the program of each backend, or why there is none: it is asked for by several checks, and takes up to half a minute
_made: WeakKeyDictionary[Subject, dict[str, LoadedProgram | str | NotApplicable]] = WeakKeyDictionary()


def checks(backends: Sequence[str]) -> tuple[Check[Subject], ...]:
    """The checks of the programs, two rows for each export backend."""
    rows = [Check(f"program[{name}]", _equality_of(name)) for name in backends]
    rows += [Check(f"program-refuses[{name}]", _refusals_of(name)) for name in backends]
    return (*rows, Check("threads", threads))


def _equality_of(backend: str) -> Callable[[Subject], None]:
    def program(subject: Subject) -> None:
        """It ships: exported to a bundle, the loaded program answers as eager in every golden case, the data too.

        Export holds the program to its tolerance with the trained weights and with others, so that none is baked in;
        the bundle's data alone must give the same class and the same bits.
        """
        made = program_of(subject, backend)
        if isinstance(made, str):
            raise ConformanceError(made)

    return program


def _refusals_of(backend: str) -> Callable[[Subject], None]:
    def program_refuses(subject: Subject) -> None:
        """The loaded program refuses registers of a wrong R, D, rank or dtype.

        Compiled code does not look: it reads beyond the end, or answers wrong numbers, without a word.
        """
        made = program_of(subject, backend)
        if isinstance(made, str):
            raise DoesNotApplyError(f"there is no program, see program[{backend}]")
        refuse_wrong_inputs(made, made.manifest.input)

    return program_refuses


def threads(subject: Subject) -> None:
    """Several threads that call one readout, or its program, each get the answer for their own registers.

    A server shares one module among its threads. A readout that keeps something in itself between two steps then gives
    one user the answer for another's input.
    """
    readout = subject.trained()
    run_in_threads("eager", readout, subject)
    if subject.spec.entry.provenance is None:
        return
    for backend in subject.backends:
        try:
            made = program_of(subject, backend)
        except DoesNotApplyError:
            continue
        if isinstance(made, LoadedProgram):
            run_in_threads(f"program {backend!r}", made, subject)
            return


def refuse_wrong_inputs(run: Callable[[Tensor], object], signature: InputSpec) -> None:
    """Refuse a program that takes what it must not.

    Raises:
        ConformanceError: It took some of ``wrong_inputs``; says which.
    """
    taken = []
    for name, given in wrong_inputs(signature):
        try:
            run(given)
        except ShapeError:
            continue
        taken.append(f"{name} {list(given.shape)} {given.dtype}")
    if taken:
        raise ConformanceError(f"program: expected a ShapeError, got an answer for {', '.join(taken)}.")


def run_in_threads(what: str, run: Callable[[Tensor], object], subject: Subject) -> None:
    """Call ``run`` from several threads with different registers, and hold each answer to that of a call alone.

    Raises:
        ConformanceError: An answer is another.
    """

    def call(given: Tensor) -> object:
        with torch.no_grad():
            return run(given)

    inputs = [subject.registers(3, seed) for seed in range(THREADS * CALLS)]
    alone = [call(given) for given in inputs]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(call, inputs))
    for got, wanted in zip(together, alone, strict=True):
        close(f"{what}, called by {THREADS} threads", got, wanted, tolerance=0)  # type: ignore[arg-type]


def compare_data(loaded: nn.Module, readout: nn.Module, subject: Subject) -> None:
    """Hold the module that a bundle's data gave to the one that was exported: the same class, the same bits.

    Raises:
        ConformanceError: It is another.
    """
    if type(loaded) is not type(readout):
        raise ConformanceError(
            f"the bundle's data: expected a {type(readout).__name__}, got a {type(loaded).__name__}."
        )
    with torch.no_grad():
        close("the bundle's data", loaded(subject.registers(3)), readout(subject.registers(3)), tolerance=0)


def program_of(subject: Subject, backend: str) -> LoadedProgram | str:
    """The backend's program, made once for a subject; or why there is none.

    Raises:
        DoesNotApplyError: The readout is of no plugin, so no bundle can name it; or the backend's package is not
            installed.
    """
    if subject.spec.entry.provenance is None:
        raise DoesNotApplyError("a bundle names its strategy, and this entry is of no plugin")
    made = _made.setdefault(subject, {})
    if backend not in made:
        made[backend] = _attempt(subject, backend)
    found = made[backend]
    if isinstance(found, NotApplicable):
        raise DoesNotApplyError(found.reason)
    return found


def _attempt(subject: Subject, backend: str) -> LoadedProgram | str | NotApplicable:
    build = registry_for(subject.spec, subject.registry, backend).export_backend_entry(backend).build
    try:
        load_reference(f"export backend {backend!r}", build)
    except PluginError as error:
        if package := missing_package(error, {reference_of(build).partition(":")[0].partition(".")[0]}):
            return NotApplicable(f"export backend {backend!r} {wants(package)}")
        return str(error)
    try:
        return _make(subject, backend)
    # kept as text: the traceback of an exception would keep the subject, and so itself, forever
    except ConformanceError as error:
        return str(error)
    except Exception as error:  # a readout may raise anything as it is exported
        show_traceback(error)
        return f"{class_name(error)}: {one_line(error)}"


def _make(subject: Subject, backend: str) -> LoadedProgram:
    readout, registry = subject.trained(), registry_for(subject.spec, subject.registry, backend)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        export(subject.spec, readout, bundle, backends=[backend], registry=registry)
        program: LoadedProgram = load(bundle, program=backend, registry=registry)
        _compare(program, bundle)
        compare_data(load(bundle, registry=registry), readout, subject)
    return program


def _compare(program: LoadedProgram, bundle: Path) -> None:
    for result in BundleContents(read_bundle(bundle)).run_cases(program.run_flat):
        if not result.ok:
            raise ConformanceError(
                f"program {program.backend!r}: case {result.case!r}: expected an error of at most "
                f"{result.tolerance:.3g}, got {result.error:.3g}."
            )
