"""Loads a bundle from disk: the module from its data, or a program that the caller names."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from regplug.backends.cpu import DEFAULT_ISA, best_for_this_cpu, this_machine
from regplug.backends.interface import ExportBackend, Program, call_flat
from regplug.bundle.contents import BundleContents
from regplug.bundle.program import LoadedProgram, open_run
from regplug.bundle.rebuild import rebuild
from regplug.errors import BundleError, ExportError, PluginError, RegplugError, ShapeError, one_line
from regplug.format.manifest import SMOKE_CASE, WEIGHTS, ProgramRecord
from regplug.format.read_bundle import read_bundle
from regplug.format.working_directory import GONE, is_gone
from regplug.registry.default import default_registry
from regplug.registry.options import bind
from regplug.registry.references import load_reference
from regplug.registry.registry import Registry


def load(
    directory: str | os.PathLike[str],
    *,
    program: str | None = None,
    digest: str | None = None,
    follow_links: bool = False,
    registry: Registry | None = None,
) -> Any:
    """Load a bundle.

    By default this reads data and runs no code from the bundle: the installed class is built, in eval mode, and its
    weights are set. A program is code from the bundle's author, so it runs only if you name it.

    Args:
        directory: The bundle's folder.
        program: The export backend of the program to load; the readout's plugin need not be installed.
        digest: The manifest's sha256 that the bundle must have.
        follow_links: Allow symbolic links to files.
        registry: Where names are looked up; the installed plugins if None.

    Returns:
        The module that was exported; with ``program``, a ``LoadedProgram``, which is called the same way.

    Raises:
        BundleError: The bundle is damaged, does not fit the installed class, or does not reproduce its golden case.
        RegplugError: The strategy is not installed, or its plugin is broken.
    """
    known = registry or default_registry()
    if is_gone():
        raise BundleError(f"bundle {os.fspath(directory)}: {GONE}.")
    name = program and program.rpartition(":")[2]  # `program` may be distribution:name
    files = read_bundle(directory, digest=digest, follow_links=follow_links, keep=lambda one: one.backend == name)
    contents = BundleContents(files)
    if program is None:
        return load_module(contents, known)
    loaded = load_program(contents, program, known)
    if registry is None:
        place = Path(directory).absolute()
        loaded.reopen = partial(load, place, program=program, digest=files.digest, follow_links=follow_links)
    return loaded


def load_module(contents: BundleContents, registry: Registry) -> nn.Module:
    """The module of a bundle that was read; raises as ``load`` does."""
    manifest, weights = contents.manifest, contents.weights
    _ = contents.golden  # checked before anything is allocated: the two files prove the sizes in the manifest
    module = rebuild(contents.path, manifest, weights, registry)
    owner = f"bundle {contents.path}: the installed {manifest.strategy}"
    result = contents.run_case(module_run(owner, module, manifest.input_names), SMOKE_CASE)
    if not result.ok:
        raise BundleError(
            f"{owner}: case '{result.case}': error "
            f"{result.error:.3g} is above the tolerance {result.tolerance:.3g}; it was made with "
            f"{manifest.made_with}."
        )
    return module


def load_program(contents: BundleContents, backend: str, registry: Registry) -> LoadedProgram:
    """A program of a bundle that was read, the best one for this CPU; raises as ``load`` does."""
    owner = f"bundle {contents.path}: program {backend!r}"
    name = backend.rpartition(":")[2]  # `backend` may be distribution:name, if two plugins offer the name
    records = [one for one in contents.manifest.programs if one.backend == name]
    if not records:
        known = ", ".join(sorted({one.backend for one in contents.manifest.programs})) or "none"
        raise BundleError(f"{owner}: not in this bundle; known: {known}.")
    best = best_for_this_cpu(owner, records, [one.properties for one in records])
    return open_program(contents, best, registry, backend)


def open_program(
    contents: BundleContents, record: ProgramRecord, registry: Registry, backend: str | None = None
) -> LoadedProgram:
    """One program of a bundle that was read, its case ``batch_1`` run; raises as ``load`` does."""
    maker = open_backend(registry, backend or record.backend)
    weights, golden = contents.weights, contents.golden  # both are checked before the program's code runs
    run = open_run(maker, f"bundle {contents.path}", _program(contents, record), weights)
    loaded = LoadedProgram(record.backend, contents.manifest, contents.files.digest, run)
    loaded.check(contents.path, golden, contents.factor)
    return loaded


def emulated_program(contents: BundleContents, record: ProgramRecord, registry: Registry) -> LoadedProgram | None:
    """One program of a bundle that was read, run by an emulator; None if its backend has none for it.

    Raises:
        BundleError: The program needs other weights.
        ExportError: There is nothing to run it with.
    """
    maker = open_backend(registry, record.backend)
    run = maker.emulate(f"bundle {contents.path}: {WEIGHTS}", _program(contents, record), contents.weights)
    return run and LoadedProgram(record.backend, contents.manifest, contents.files.digest, run)


def _program(contents: BundleContents, record: ProgramRecord) -> Program:
    data = contents.files.files[record.file]
    return Program(record.file, data, record.properties, inputs=contents.manifest.input_names)


def open_backend(registry: Registry, name: str, settings: Mapping[str, Any] | None = None) -> ExportBackend:
    """An export backend by name, with its constructor's keywords.

    Raises:
        SpecError: A setting is unknown, or has a wrong value.
        NameLookupError: No plugin offers the backend.
        PluginError: It is not an ``ExportBackend``.
        ExportError: There are no programs for this platform.
    """
    entry = registry.export_backend_entry(name)
    if sys.platform != "linux" or this_machine() not in DEFAULT_ISA:
        raise ExportError(
            f"program {name!r}: expected Linux on x86-64 or aarch64, got {sys.platform} on {platform.machine()}; "
            "use a bundle's data only, regplug.load(directory)."
        )
    owner = f"export backend {name!r}"
    build = load_reference(owner, entry.build)
    backend = build(**bind(owner, build, {}, settings or {}))
    if not isinstance(backend, ExportBackend):
        raise PluginError(f"{owner}: expected an ExportBackend, got {type(backend).__name__}.")
    return backend


def module_run(owner: str, module: nn.Module, names: Sequence[str] = ("registers",)) -> Callable[..., list[Tensor]]:
    """A module as a function of its flat inputs with flat outputs, which raises a BundleError if the module fails.

    Args:
        owner: The module's name in messages.
        module: In eval mode.
        names: The names of its inputs, in the manifest's order.
    """

    def run(*inputs: Tensor) -> list[Tensor]:
        try:
            return call_flat(module, names, inputs)
        except ShapeError as error:  # of the module's own input
            raise BundleError(f"{owner}: {error}") from error
        except RegplugError:
            raise
        except Exception as error:  # the installed class may differ from the exported one
            shape = list(inputs[0].shape)
            raise BundleError(
                f"{owner}: expected outputs for {shape}, got {type(error).__name__}: {one_line(error)}"
            ) from error

    return run
