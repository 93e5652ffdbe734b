"""A readout's exported programs: one of each export backend, equal to eager, and refusing wrong input."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from regplug.bundle.contents import BundleContents
from regplug.bundle.export import export
from regplug.bundle.load import load
from regplug.bundle.program import LoadedProgram
from regplug.bundle.wrong_inputs import wrong_inputs
from regplug.conformance.check import Check, DoesNotApplyError
from regplug.conformance.subject import Subject, close, registry_for
from regplug.conformance.vector_inputs import join_in, of_registers, vectors_from
from regplug.errors import ConformanceError, PluginError, ShapeError, class_name, one_line
from regplug.format.manifest import Manifest
from regplug.format.read_bundle import read_bundle
from regplug.registry.missing_package import missing_package, wants
from regplug.registry.references import load_reference, reference_of

THREADS, CALLS = 4, 8

# by backend, the program or why there is none: several checks ask for it, and making it takes up to half a minute.
# A failure is kept as text, because the traceback of an exception would keep the subject, its own key, forever
_programs: WeakKeyDictionary[Subject, dict[str, LoadedProgram | str]] = WeakKeyDictionary()


def checks(backends: Sequence[str]) -> tuple[Check[Subject], ...]:
    """The checks of the programs: two for each export backend, and ``threads``."""
    rows = [Check(f"program[{name}]", _equality_of(name)) for name in backends]
    rows += [Check(f"program-refuses[{name}]", _refusals_of(name)) for name in backends]
    return (*rows, Check("threads", threads))


def _equality_of(backend: str) -> Callable[[Subject], None]:
    def program(subject: Subject) -> None:
        """The bundle that it is exported to works: its program and its data answer as eager in every golden case.

        Export holds the program to its tolerance with the trained weights and with others, so that no weight is baked
        in as a constant. The bundle's data alone must give the same class and the same bits.
        """
        _make_program(subject, backend)

    return program


def _refusals_of(backend: str) -> Callable[[Subject], None]:
    def program_refuses(subject: Subject) -> None:
        """The loaded program refuses registers of a wrong R, D, rank or dtype.

        Compiled code does not check: it reads past the end, or silently gives wrong numbers.
        """
        program = program_of(subject, backend)
        refuse_wrong_inputs(program.run_flat, program.manifest)

    return program_refuses


def threads(subject: Subject) -> None:
    """Several threads that call one readout, or its program, each get the answer for their own registers.

    A server shares one module among its threads. A readout that stores something on itself between two steps then gives
    one user the answer for another's input.
    """
    readout = subject.trained()
    run_in_threads("eager", readout, subject)
    for backend in subject.backends:
        try:
            run = run_of(subject, backend)
        except DoesNotApplyError:
            continue
        run_in_threads(f"program {backend!r}", lambda given, run=run: run(given)[0], subject)  # type: ignore[misc]
        return


def refuse_wrong_inputs(run: Callable[..., object], manifest: Manifest) -> None:
    """Refuse a program that accepts wrong input.

    Raises:
        ConformanceError: It accepted some of ``wrong_inputs``; says which.
    """
    taken = []
    for name, inputs in wrong_inputs(manifest):
        try:
            run(*inputs)
        except ShapeError:
            continue
        taken.append(f"{name} {list(inputs[0].shape)} {inputs[0].dtype}")
    if taken:
        raise ConformanceError(f"program: expected a ShapeError, got an answer for {', '.join(taken)}.")


def run_in_threads(what: str, run: Callable[[Tensor], object], subject: Subject) -> None:
    """Call ``run`` from several threads with different registers, and compare each answer with that of a single call.

    Raises:
        ConformanceError: An answer differs.
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
    """Compare the module loaded from a bundle's data with the one that was exported: the same class, the same bits.

    Raises:
        ConformanceError: They differ.
    """
    if type(loaded) is not type(readout):
        raise ConformanceError(
            f"the bundle's data: expected a {type(readout).__name__}, got a {type(loaded).__name__}."
        )
    wanted, got = (subject.answer(of_registers(one), subject.registers(3)) for one in (readout, loaded))
    close("the bundle's data", got, wanted, tolerance=0)


def run_of(subject: Subject, backend: str) -> Callable[[Tensor], Sequence[Tensor]]:
    """How the backend's program is called with registers alone; as ``program_of``."""
    program = program_of(subject, backend)
    widths = {one.name: int(one.shape[1]) for one in program.manifest.more_inputs}
    return lambda given: program.run_flat(given, *vectors_from(given, widths).values())


def program_of(subject: Subject, backend: str) -> LoadedProgram:
    """The backend's program, made once for each subject.

    Raises:
        DoesNotApplyError: There is none; another check reports why.
    """
    try:
        return _make_program(subject, backend)
    except DoesNotApplyError:
        raise
    except Exception as error:
        raise DoesNotApplyError(f"there is no program, see program[{backend}]") from error


def _make_program(subject: Subject, backend: str) -> LoadedProgram:
    """The backend's program; a failure is raised as it happened the first time, later with its message alone.

    Raises:
        ConformanceError: The program is wrong, or could not be made the last time. A readout may raise anything else.
        DoesNotApplyError: The readout is of no plugin, so no bundle can name it; or the backend's package is not
            installed.
    """
    if subject.spec.entry.provenance is None:
        raise DoesNotApplyError("a bundle names its strategy, and this entry is of no plugin")
    programs = _programs.setdefault(subject, {})
    if backend not in programs:
        _check_backend(subject, backend)
        try:
            programs[backend] = _export_and_load(subject, backend)
        except ConformanceError as error:
            programs[backend] = str(error)
            raise
        except Exception as error:  # a readout may raise anything as it is exported
            programs[backend] = f"{class_name(error)}: {one_line(error)}"
            raise
    program = programs[backend]
    if isinstance(program, str):
        raise ConformanceError(program)
    return program


def _check_backend(subject: Subject, backend: str) -> None:
    build = registry_for(subject.spec, subject.registry, backend).export_backend_entry(backend).build
    try:
        load_reference(f"export backend {backend!r}", build)
    except PluginError as error:
        if package := missing_package(error, {reference_of(build).partition(":")[0].partition(".")[0]}):
            raise DoesNotApplyError(f"export backend {backend!r} {wants(package)}") from error
        raise ConformanceError(str(error)) from error


def _export_and_load(subject: Subject, backend: str) -> LoadedProgram:
    readout, registry = join_in(subject.trained()), registry_for(subject.spec, subject.registry, backend)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        export(subject.spec, readout, bundle, backends=[backend], registry=registry)
        program: LoadedProgram = load(bundle, program=backend, registry=registry)
        _check_golden_cases(program, bundle)
        compare_data(load(bundle, registry=registry), readout, subject)
    return program


def _check_golden_cases(program: LoadedProgram, bundle: Path) -> None:
    for result in BundleContents(read_bundle(bundle)).run_cases(program.run_flat):
        if not result.ok:
            raise ConformanceError(
                f"program {program.backend!r}: case {result.case!r}: expected an error of at most "
                f"{result.tolerance:.3g}, got {result.error:.3g}."
            )
