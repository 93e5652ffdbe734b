"""The ``aotinductor`` backend: a model library that C++ runs through torch's stable C interface, weights as inputs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.export import ExportedProgram

from regplug.backends.cache import key_of
from regplug.backends.compiling import (
    LINKER_FLAGS,
    SOURCE_EDIT,
    SYMBOL_VERSIONS,
    compile_in_child,
    compiler_of,
    no_c_interface,
    target_of,
)
from regplug.backends.cpu import UNKNOWN, cpu_flags, default_isa, machine_of, this_machine
from regplug.backends.cross import cross_tools
from regplug.backends.elf import called_functions, check_library
from regplug.backends.emulated import emulated
from regplug.backends.graph import WeightsAsInputs, call_site, export_graph, foreign_operations
from regplug.backends.interface import ExportBackend, Program, Run, Source
from regplug.backends.model_library import open_model_library
from regplug.backends.program_weights import check_weights, weights_property
from regplug.backends.reuse import reused
from regplug.backends.runtime import NOTHING, known_functions, what_it_needs
from regplug.errors import ExportError, SpecError, one_line
from regplug.format.manifest import CPU_FLAGS, NEEDS

OWNER = "program 'aotinductor'"
ISA = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class AOTInductorBackend(ExportBackend):
    """Compiles the module, one program per instruction set.

    Args:
        isa: Instruction sets, as the compiler's ``-march`` names them, or ``"native"`` for that of this CPU. Programs
            for another machine, as ``"armv8-a"``, are run in an emulator. None for ``default_isa``.
        time_limit: Seconds that the compiler may take for each, and the emulator for each of its runs.
        compiler: The command that compiles for another machine; None for Debian's or Zig's.

    Raises:
        SpecError: A setting has an invalid value.
    """

    def __init__(
        self, isa: Sequence[str] | None = None, time_limit: float = 600.0, compiler: str | None = None
    ) -> None:
        names = [isa] if isinstance(isa, str) else list(dict.fromkeys([default_isa()] if isa is None else isa))
        for name in names:
            if not ISA.fullmatch(name):
                raise SpecError(f"{OWNER}: isa: expected a name as x86-64-v3 or native, got {name!r}.")
        if not names:
            raise SpecError(f"{OWNER}: isa: expected at least one name, got none.")
        if not time_limit > 0:
            raise SpecError(f"{OWNER}: time_limit: expected seconds > 0, got {time_limit!r}.")
        if compiler is not None and not any(map(_is_foreign, names)):
            raise SpecError(
                f"{OWNER}: compiler: expected with it an isa of another machine, as armv8-a, got {', '.join(names)}; "
                "for this machine's compiler, set CXX."
            )
        self._isa = names
        self._compiler = compiler
        self._time_limit = time_limit

    def export(self, source: Source) -> list[Program]:
        """One ``program.aotinductor.ISA.so`` for each instruction set.

        Raises:
            ExportError: torch.export or the compiler rejects the module, there is no compiler, it takes too long, or
                this CPU lacks the instruction set: a program is run before it is written.
        """
        state = dict(sorted(source.module.state_dict().items()))
        weighted = WeightsAsInputs(source.module, list(state), source.input_names)
        graph = export_graph("aotinductor", weighted, source, list(state.values()))
        _refuse_foreign_operations(graph)

        def make(isa: str) -> list[Program]:
            source.progress(f"compiling for {isa}")
            try:
                return [self._compile(graph, isa, weights_property(source))]
            except OSError as error:  # no room for a file, a process or a descriptor
                raise ExportError(f"{OWNER}: {isa}: the compiler could not run: {one_line(error)}.") from error

        programs = [
            program
            for isa in self._isa
            for program in reused("aotinductor", source, graph, self._settings(isa), lambda isa=isa: make(isa))  # type: ignore[misc]
        ]
        # not kept with them: a newer runtime may have more functions
        return [replace(one, properties={**one.properties, NEEDS: what_it_needs(one.data, graph)}) for one in programs]

    def open(self, owner: str, program: Program, weights: Mapping[str, Tensor]) -> Run:
        """Load the library, and give it these weights in every run.

        Raises:
            BundleError: It does not load, or needs other weights.
        """
        check_weights(owner, program, weights)
        library = open_model_library(program.label, program.data)
        held = [_contiguous(weights[name]) for name in sorted(weights)]
        addresses = {tensor.untyped_storage().data_ptr() for tensor in held}

        def run(*inputs: Tensor) -> list[Tensor]:
            outputs = library.run([*inputs, *held])
            return [out.clone() if out.untyped_storage().data_ptr() in addresses else out for out in outputs]

        return run

    def emulate(self, owner: str, program: Program, weights: Mapping[str, Tensor]) -> Run | None:
        """A program of another machine, run by an emulator.

        Raises:
            BundleError: It needs other weights.
            ExportError: There is no emulator, or it has nothing to run the program with.
        """
        isa = program.properties.get("isa", "")
        if not _is_foreign(isa):
            return None
        check_weights(owner, program, weights)
        held = [_contiguous(weights[name]) for name in sorted(weights)]
        label = f"{OWNER}: {isa}"
        if (needs := program.properties.get(NEEDS, NOTHING)) != NOTHING:
            raise ExportError(
                f"{label}: expected a program that runs without libtorch, as in an emulator, got one that needs "
                f"{needs}."
            )
        try:
            return emulated(label, cross_tools(label, self._compiler), program.data, held, self._time_limit)
        except OSError as error:
            raise ExportError(f"{label}: the emulator could not run: {one_line(error)}.") from error

    def _compile(self, graph: ExportedProgram, isa: str, properties: Mapping[str, str]) -> Program:
        foreign = _is_foreign(isa)
        compiler = cross_tools(f"{OWNER}: {isa}", self._compiler).compiler if foreign else compiler_of(OWNER)
        options, flags = target_of(OWNER, compiler, isa)
        missing = [] if foreign else cpu_flags().missing(flags)
        if missing is None:
            raise ExportError(f"{OWNER}: {UNKNOWN}")
        if missing:
            raise ExportError(
                f"{OWNER}: isa: expected a CPU with {' '.join(missing)} for {isa!r}, got one without; a program is run "
                f"before it is written: export on such a machine, or with --isa {default_isa()}."
            )
        data = compile_in_child(OWNER, graph, compiler, options, flags, self._time_limit, with_stubs=foreign)
        check_library(f"{OWNER}: {isa}", data, machine_of(isa))
        if foreign and (others := set(called_functions(data)) - known_functions()):
            if "__cxa_throw" in others:  # aarch64-linux-gnu-gcc compiles C++, and links no C++ library
                raise ExportError(
                    f"{OWNER}: {isa}: compiler: expected one that links the C++ library, as g++ does, got "
                    f"{shlex.join(compiler)}."
                )
            raise ExportError(
                f"{OWNER}: {isa}: expected functions that regplug::runtime has, which runs it in the emulator, got "
                f"{', '.join(sorted(others))}; export on such a machine."
            )
        needed = {"isa": isa, CPU_FLAGS: " ".join(sorted(flags)), **properties}
        return Program(f"program.aotinductor.{isa}.so", data, needed)

    def _settings(self, isa: str) -> dict[str, object]:
        # "making" changes with how programs are made, so that those of an older regplug are not found
        settings: dict[str, object] = {"isa": isa, "making": key_of([SOURCE_EDIT, SYMBOL_VERSIONS, *LINKER_FLAGS])[:12]}
        if isa == "native":  # machines with different CPUs may share a cache folder
            settings["cpu"] = key_of(sorted(cpu_flags().present))[:12]
        if _is_foreign(isa) and self._compiler is not None:
            settings["compiler"] = self._compiler
        return settings


def _is_foreign(isa: str) -> bool:
    return machine_of(isa) == "aarch64" != this_machine()


def _refuse_foreign_operations(graph: ExportedProgram) -> None:
    """Refuse operations that another library registered: they have no C interface, and the compiler's process does
    not import that library.

    Raises:
        ExportError: There is one; names it.
    """
    for node in foreign_operations(graph):
        raise no_c_interface(OWNER, str(node.target), call_site(node))


def _contiguous(weight: Tensor) -> Tensor:
    """A weight as the library takes it: contiguous, outside autograd."""
    with torch.inference_mode():
        return weight.detach().contiguous()
