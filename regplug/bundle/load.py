"""Load: a bundle on disk to what runs, the module out of data or a program that the caller named."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from regplug.backends.cpu import best_for_this_cpu
from regplug.backends.interface import ExportBackend, Program, flatten
from regplug.bundle.golden import CaseError, GoldenSet, compare, golden_set
from regplug.bundle.program import LoadedProgram, open_run
from regplug.bundle.rebuild import rebuild
from regplug.errors import BundleError, ExportError, PluginError, RegplugError, one_line
from regplug.format.manifest import GOLDEN, SMOKE_CASE, WEIGHTS, Manifest, ProgramRecord
from regplug.format.read_bundle import BundleFiles, read_bundle
from regplug.format.weights import load_tensors
from regplug.format.working_directory import GONE, is_gone
from regplug.registry.default import default_registry
from regplug.registry.options import bind
from regplug.registry.references import load_reference
from regplug.registry.registry import Registry
from regplug.torch_private import cpu_capability


def load(
    directory: str | os.PathLike[str],
    *,
    program: str | None = None,
    digest: str | None = None,
    follow_links: bool = False,
    registry: Registry | None = None,
) -> Any:
    """Load a bundle.

    By default this reads data and runs no code of the bundle: the locally installed class is built, in eval mode,
    and its weights are set. A program is code from whoever made the bundle, so it runs only when you name it.

    Args:
        directory: The bundle's folder.
        program: The export backend whose program to load; the plugin that made the readout need not be installed.
        digest: The manifest's sha256 that the bundle must have.
        follow_links: Allow symbolic links to files.
        registry: Where names are looked up; the installed plugins when None.

    Returns:
        The module that was exported; with ``program``, a ``LoadedProgram``, which is called likewise.

    Raises:
        BundleError: The bundle is damaged, does not fit the installed class, or does not reproduce its golden case.
        RegplugError: The strategy is not installed, or its plugin is broken.
    """
    known = registry or default_registry()
    if is_gone():
        raise BundleError(f"bundle {os.fspath(directory)}: {GONE}.")
    name = program and program.rpartition(":")[2]  # it may be distribution:name
    files = read_bundle(directory, digest=digest, follow_links=follow_links, keep=lambda one: one.backend == name)
    if program is None:
        return load_module(files, known)
    loaded = load_program(files, program, known)
    if registry is None:
        place = Path(directory).absolute()
        loaded.reopen = partial(load, place, program=program, digest=files.digest, follow_links=follow_links)
    return loaded


def load_module(files: BundleFiles, registry: Registry) -> nn.Module:
    """The module of a bundle that was read; raises as ``load`` does."""
    manifest = files.manifest
    weights, golden = weights_of(files), golden_of(files)  # both before anything of the sizes that they prove is made
    module = rebuild(files.path, manifest, weights, registry)
    owner = f"bundle {files.path}: the installed {manifest.strategy}"
    result = run_case(module_run(owner, module), files, golden, SMOKE_CASE)
    if not result.ok:
        raise BundleError(
            f"{owner}: case '{result.case}': error "
            f"{result.error:.3g} is above the tolerance {result.tolerance:.3g}; it was made with "
            f"{manifest.made_with}."
        )
    return module


def load_program(files: BundleFiles, backend: str, registry: Registry) -> LoadedProgram:
    """A program of a bundle that was read, the one that suits this CPU best; raises as ``load`` does."""
    owner = f"bundle {files.path}: program {backend!r}"
    name = backend.rpartition(":")[2]  # it may be distribution:name, where two plugins offer the name
    records = [one for one in files.manifest.programs if one.backend == name]
    if not records:
        known = ", ".join(sorted({one.backend for one in files.manifest.programs})) or "none"
        raise BundleError(f"{owner}: not in this bundle; known: {known}.")
    return open_program(
        files, best_for_this_cpu(owner, records, [one.properties for one in records]), registry, backend
    )


def open_program(
    files: BundleFiles, record: ProgramRecord, registry: Registry, backend: str | None = None
) -> LoadedProgram:
    """One program of a bundle that was read, its case ``batch_1`` run; raises as ``load`` does."""
    maker = open_backend(registry, backend or record.backend)
    program = Program(record.file, files.files[record.file], record.properties)
    weights, golden = weights_of(files), golden_of(files)
    run = open_run(maker, f"bundle {files.path}: {WEIGHTS}", program, weights)
    loaded = LoadedProgram(record.backend, files.manifest, files.digest, run)
    loaded.check(files.path, golden, tolerance_factor(files.manifest))
    return loaded


def open_backend(registry: Registry, name: str, settings: Mapping[str, Any] | None = None) -> ExportBackend:
    """An export backend by name, with its constructor's keywords.

    Raises:
        SpecError: A setting is unknown, or has a value that it may not have.
        NameLookupError: No plugin offers it.
        PluginError: It is no ``ExportBackend``.
        ExportError: Programs do not exist for this platform.
    """
    entry = registry.export_backend_entry(name)
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise ExportError(
            f"program {name!r}: expected Linux on x86-64, got {sys.platform} on {platform.machine()}; "
            "use a bundle's data only, regplug.load(directory)."
        )
    owner = f"export backend {name!r}"
    build = load_reference(owner, entry.build)
    backend = build(**bind(owner, build, {}, settings or {}))
    if not isinstance(backend, ExportBackend):
        raise PluginError(f"{owner}: expected an ExportBackend, got {type(backend).__name__}.")
    return backend


def weights_of(files: BundleFiles) -> dict[str, Tensor]:
    """The weights of a bundle that was read."""
    return load_tensors(f"bundle {files.path}: {WEIGHTS}", files.tensors[WEIGHTS])


def golden_of(files: BundleFiles) -> GoldenSet:
    """The golden cases of a bundle that was read."""
    tensors = load_tensors(f"bundle {files.path}: {GOLDEN}", files.tensors[GOLDEN])
    return golden_set(files.path, files.manifest, tensors)


def tolerance_factor(manifest: Manifest) -> float:
    """2 where ATen uses another instruction set than on the exporting machine, else 1."""
    return 1.0 if cpu_capability() == manifest.provenance.cpu else 2.0


def module_run(owner: str, module: nn.Module) -> Callable[[Tensor], list[Tensor]]:
    """A module as a function with flat outputs, which raises a BundleError where the module fails.

    Args:
        owner: Whose module it is, for messages.
        module: In eval mode.
    """

    def run(given: Tensor) -> list[Tensor]:
        try:
            return flatten(module(given))
        except RegplugError:
            raise
        except Exception as error:  # the installed class may be another than the one that was exported
            raise BundleError(
                f"{owner}: expected outputs for {list(given.shape)}, got {type(error).__name__}: {one_line(error)}"
            ) from error

    return run


def run_case(run: Callable[[Tensor], Sequence[Tensor]], files: BundleFiles, golden: GoldenSet, name: str) -> CaseError:
    """Run one golden case of a bundle."""
    case = next(case for case in golden.golden.cases if case.case == name)
    return compare(run, golden, case, files.manifest.outputs, tolerance_factor(files.manifest))
