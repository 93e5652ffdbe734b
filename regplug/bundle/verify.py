"""Verifies a bundle: files and digests, eager against the golden cases, and on request every program."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regplug.backends.cpu import missing_flags
from regplug.backends.inductor_folder import private_inductor_folder
from regplug.backends.inductor_private import lacks_compiler
from regplug.backends.interface import call_flat
from regplug.bundle.contents import BundleContents
from regplug.bundle.golden import Run
from regplug.bundle.load import emulated_program, module_run, open_program
from regplug.bundle.program import LoadedProgram
from regplug.bundle.rebuild import rebuild
from regplug.bundle.sign import read_signed_bundle
from regplug.bundle.wrong_inputs import wrong_inputs
from regplug.errors import BundleError, ExportError, NameLookupError, ShapeError, SpecError, one_line
from regplug.format.manifest import Manifest, ProgramRecord
from regplug.format.read_bundle import BundleFiles, read_bundle
from regplug.format.working_directory import GONE, is_gone
from regplug.registry.default import default_registry
from regplug.registry.dtypes import torch_dtype
from regplug.registry.registry import Registry
from regplug.torch_private import mark_dynamic_batch

EAGER_ERROR_MARGIN = 16  # how much eager's error, and its rounding, may differ between two machines


@dataclass(frozen=True)
class VerifiedCase:
    """One row: what was run, on which case, and the result.

    ``verdict`` is ``ok``, ``failed``, ``refused`` (a wrong input, as it must be), ``accepted`` (a wrong input),
    ``not installed``, ``not applicable`` (torch.compile without a C++ compiler), or ``other CPU`` (compiled for another
    CPU, and nothing emulates it here).
    ``error`` and ``tolerance`` are None if nothing was compared; ``detail`` says why a run gave no output, or that an
    emulator ran the program, and ``exception`` is what it raised.
    """

    program: str
    case: str
    verdict: str
    error: float | None = None
    tolerance: float | None = None
    detail: str = ""
    exception: BaseException | None = field(default=None, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether this row is as it must be."""
        return self.verdict not in ("failed", "accepted")

    def as_dict(self) -> Mapping[str, Any]:
        """The row as plain values, without the exception."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "exception"}


@dataclass(frozen=True)
class Verification:
    """The result of ``verify``, for a bundle with complete and unchanged files.

    Args:
        directory: The bundle's folder.
        digest: Its digest.
        manifest: Its manifest.
        checks: One row for each program and case, eager first.
        passed_over: Other files in the folder: no loader opens them, and no digest or signature covers them.
    """

    directory: Path
    digest: str
    manifest: Manifest
    checks: tuple[VerifiedCase, ...]
    passed_over: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every row is as it must be."""
        return all(check.ok for check in self.checks)


def verify(
    directory: str | os.PathLike[str],
    *,
    programs: bool = False,
    digest: str | None = None,
    public_key: str | os.PathLike[str] | None = None,
    signature: str | os.PathLike[str] | None = None,
    follow_links: bool = False,
    registry: Registry | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Verification:
    """Check a bundle: every file and digest, and the installed class against every golden case.

    Args:
        directory: The bundle's folder.
        programs: Also run every program of the bundle, and ``torch.compile(fullgraph=True)`` of the loaded module,
            on every golden case, and check that each program refuses wrong inputs. Runs the bundle's code; a program
            for aarch64 in qemu, if it is installed.
        digest: The manifest's sha256 that the bundle must have.
        public_key: The key that must have signed it, PEM; None to check no signature.
        signature: The signature's file; ``DIRECTORY.sig`` next to the folder if None.
        follow_links: Allow symbolic links to files.
        registry: Where names are looked up; the installed plugins if None.
        progress: Called with the name of each step as it begins.

    Raises:
        BundleError: A file is missing, added, changed or malformed, or the bundle has no signature by this key.
        NameLookupError: The strategy is not installed. With ``programs`` that is a row instead: programs run without
            it.
    """
    registry = registry or default_registry()
    if is_gone():
        raise BundleError(f"bundle {os.fspath(directory)}: {GONE}.")
    read = _reader(public_key, signature)
    files = read(directory, digest=digest, follow_links=follow_links, keep=lambda program: programs)
    contents, manifest = BundleContents(files), files.manifest
    _, weights = contents.golden, contents.weights  # both are checked before anything is allocated
    checks: list[VerifiedCase] = []
    try:
        progress("eager")
        module = rebuild(files.path, manifest, weights, registry)
    except NameLookupError:
        if not programs:
            raise
        checks.append(VerifiedCase("eager", "-", "not installed"))
    else:
        owner = f"bundle {files.path}: the installed {manifest.strategy}"
        checks += _check_eager(module_run(owner, module, manifest.input_names), contents)
        if programs:
            progress("compiling the installed class with torch.compile")
            checks += _check_compiled(module, contents)
    if programs:
        for record in manifest.programs:
            progress(f"program {record.name}")
            checks += _check_program(record.name, contents, record, registry)
    return Verification(Path(files.path), files.digest, manifest, tuple(checks), files.passed_over)


def _reader(
    public_key: str | os.PathLike[str] | None, signature: str | os.PathLike[str] | None
) -> Callable[..., BundleFiles]:
    if public_key is not None:
        return functools.partial(read_signed_bundle, public_key=public_key, signature=signature)
    if signature is not None:
        raise SpecError("signature: expected a public key with it, got none.")
    return read_bundle


def _check_eager(run: Run, contents: BundleContents) -> Iterator[VerifiedCase]:
    """Every case, and whether eager's error is as small as the manifest says: the tolerance follows from it."""
    manifest, golden = contents.manifest, contents.golden
    names = [output.name for output in manifest.outputs]
    rounding = torch.finfo(torch_dtype(manifest.input.dtype)).eps
    for check, case in zip(_run_cases("eager", run, contents), golden.golden.cases, strict=True):
        most = EAGER_ERROR_MARGIN * ((check.error or 0.0) + rounding * golden.scale(case, names))
        if check.ok and case.eager_error > most:
            detail = f"case '{case.case}': eager_error: expected at most {most:.3g} as measured here, got "
            yield replace(check, verdict="failed", detail=f"{detail}{case.eager_error:.3g}.")
        else:
            yield check


def _check_program(
    name: str, contents: BundleContents, record: ProgramRecord, registry: Registry
) -> Iterator[VerifiedCase]:
    detail = ""
    if missing := missing_flags(record.properties):
        try:
            emulated, why = emulated_program(contents, record, registry), ""
        except ExportError as error:
            emulated, why = None, f" {error}"
        if emulated is None:
            detail = f"program '{name}': not run here, wants {' '.join(missing)}.{why}"
            yield VerifiedCase(name, "-", "other CPU", detail=detail)
            return
        loaded, detail = emulated, f"program '{name}': run in an emulator."
    else:
        loaded = open_program(contents, record, registry)
    for check in _run_cases(name, loaded.run_flat, contents):
        yield replace(check, detail=detail)
        detail = ""
    for case, inputs in wrong_inputs(contents.manifest):
        yield VerifiedCase(name, case, "refused" if _refuses(loaded, inputs) else "accepted")


def _check_compiled(module: nn.Module, contents: BundleContents) -> list[VerifiedCase]:
    try:
        with private_inductor_folder():
            return list(_run_cases("torch.compile", _compiled(module, contents.manifest), contents))
    except ExportError as error:  # a graph break, or no compiler: the other programs are verified all the same
        if lacks_compiler(error.__cause__):
            verdict, detail = "not applicable", "no C++ compiler; programs need none to run"
        else:
            verdict, detail = "failed", str(error)
        return [VerifiedCase("torch.compile", "-", verdict, detail=detail, exception=error)]
    except (MemoryError, ImportError, RuntimeError, SystemError) as error:  # what a lack of memory may raise
        detail = f"torch.compile: {type(error).__name__}: {one_line(error)}"
        return [VerifiedCase("torch.compile", "-", "failed", detail=detail, exception=error)]


def _refuses(program: LoadedProgram, inputs: Sequence[Tensor]) -> bool:
    try:
        program.run_flat(*inputs)
    except ShapeError:
        return True
    return False


def _run_cases(name: str, run: Run, contents: BundleContents) -> Iterator[VerifiedCase]:
    for result in contents.run_cases(run):
        verdict = "ok" if result.ok else "failed"
        yield VerifiedCase(name, result.case, verdict, result.error, result.tolerance)


def _compiled(module: nn.Module, manifest: Manifest) -> Callable[..., list[Tensor]]:
    """``torch.compile(fullgraph=True)`` of the module; only the batch size is dynamic."""
    torch.compiler.reset()  # else earlier modules count against the recompile limit
    compiled: Any = torch.compile(module, fullgraph=True)

    def call(*inputs: Tensor) -> list[Tensor]:
        for given in inputs:
            if given.shape[0] > 1:
                mark_dynamic_batch(given)
        try:
            return call_flat(compiled, manifest.input_names, inputs)
        except RuntimeError as error:  # all errors of Dynamo and Inductor are RuntimeErrors
            raise ExportError(
                f"torch.compile: expected a program of {type(module).__name__}, got: {one_line(error)}"
            ) from error

    return call
