"""Compiles a model library in a child process, which may hang or crash, and which has its own settings."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.export import ExportedProgram

from regplug.backends.child_process import format_exit, run_bounded, until
from regplug.backends.compiler import compiler_words
from regplug.backends.inductor_private import LAST_ERROR, LAST_ERROR_WITHOUT_DESTRUCTOR
from regplug.backends.program_folder import folder_for_programs
from regplug.backends.python_child import python_command
from regplug.errors import ExportError, one_line, place_in
from regplug.format.temporary import temporary_folder

# the macro that a compiler defines for an instruction set that it uses by itself, and the word of /proc/cpuinfo for it
FLAGS = {
    "__SSE3__": "pni",
    "__SSSE3__": "ssse3",
    "__SSE4_1__": "sse4_1",
    "__SSE4_2__": "sse4_2",
    "__POPCNT__": "popcnt",
    "__AVX__": "avx",
    "__AVX2__": "avx2",
    "__FMA__": "fma",
    "__F16C__": "f16c",
    "__BMI__": "bmi1",
    "__BMI2__": "bmi2",
    "__LZCNT__": "abm",
    "__MOVBE__": "movbe",
    "__FMA4__": "fma4",
    "__XOP__": "xop",
    "__TBM__": "tbm",
    "__SSE4A__": "sse4a",
    "__AVX512F__": "avx512f",
    "__AVX512BW__": "avx512bw",
    "__AVX512CD__": "avx512cd",
    "__AVX512DQ__": "avx512dq",
    "__AVX512VL__": "avx512vl",
    "__AVX512IFMA__": "avx512ifma",
    "__AVX512VBMI__": "avx512vbmi",
    "__AVX512VBMI2__": "avx512_vbmi2",
    "__AVX512VNNI__": "avx512_vnni",
    "__AVX512BITALG__": "avx512_bitalg",
    "__AVX512VPOPCNTDQ__": "avx512_vpopcntdq",
    "__AVX512BF16__": "avx512_bf16",
    "__AVX512FP16__": "avx512_fp16",
    "__AVX512ER__": "avx512er",
    "__AVX512PF__": "avx512pf",
    "__AVXVNNI__": "avx_vnni",
    "__AVXIFMA__": "avx_ifma",
    "__AMX_TILE__": "amx_tile",
    "__AMX_BF16__": "amx_bf16",
    "__AMX_INT8__": "amx_int8",
    "__ARM_FP": "fp",
    "__ARM_NEON": "asimd",
    "__ARM_FEATURE_CRC32": "crc32",
    "__ARM_FEATURE_AES": "aes pmull",
    "__ARM_FEATURE_SHA2": "sha1 sha2",
    "__ARM_FEATURE_SHA3": "sha3",
    "__ARM_FEATURE_SHA512": "sha512",
    "__ARM_FEATURE_SM3": "sm3",
    "__ARM_FEATURE_SM4": "sm4",
    "__ARM_FEATURE_ATOMICS": "atomics",
    "__ARM_FEATURE_QRDMX": "asimdrdm",
    "__ARM_FEATURE_FP16_SCALAR_ARITHMETIC": "fphp",
    "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC": "asimdhp",
    "__ARM_FEATURE_FP16_FML": "asimdfhm",
    "__ARM_FEATURE_DOTPROD": "asimddp",
    "__ARM_FEATURE_COMPLEX": "fcma",
    "__ARM_FEATURE_JCVT": "jscvt lrcpc",  # both came with Armv8.3, and LRCPC has no macro
    "__ARM_FEATURE_FRINT": "frint",
    "__ARM_FEATURE_MATMUL_INT8": "i8mm",
    "__ARM_FEATURE_BF16_VECTOR_ARITHMETIC": "bf16",
    "__ARM_FEATURE_SVE": "sve",
    "__ARM_FEATURE_SVE2": "sve2",
}
# Inductor's vector classes, and the flags that their code needs
VECTORS = {
    "VecAVX512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"},
    "VecAVX2": {"avx2", "fma", "f16c"},
}
KNOWN = {
    "x86-64": "x86-64-v2, x86-64-v3, x86-64-v4, native, haswell, icelake-server, znver3",
    "aarch64": "armv8-a, armv8.2-a, armv9-a",
}
# environment variables that configure torch's compiler: the backend's settings alone decide about a library
CONFIGURING = re.compile(r"TORCH_|TORCHINDUCTOR_|TORCHDYNAMO_|AOT_INDUCTOR_|AOTINDUCTOR_|ATEN_CPU_CAPABILITY|CXX$")
MACROS_LIMIT_S = 60.0  # for a compiler to list its macros
# files in the child's folder; REFUSED names the operation that no library can call, and the trace of its call
GRAPH, LIBRARY, COMPILER, REFUSED = "graph.pt2", "program.so", "c++", "refused"
SYMBOL_VERSIONS_FILE, SOURCE_EDIT_FILE, STUBS, HEADERS = "symbol_versions", "source_edit", "stubs", "headers"
# torch's own, for a machine that its libraries here are not for
STUB_LIBRARIES = ("libtorch_cpu.so", "libc10.so")
STUB_FLAGS = ("-Wl,--no-as-needed", "-ltorch_cpu", "-Wl,--as-needed")  # a stub has no function that is needed
# Zig links its C++ library into the program. That has functions which run when a thread or the process ends.
NEVER_UNMAPPED = "-Wl,-z,nodelete"
# A process may have several model libraries, which all define the same C++ names. Only the interface is visible, and a
# library's calls of its own functions stay inside it, so that no call reaches another library.
SYMBOL_VERSIONS = "{ global: AOTInductor*; local: *; };\n"
LINKER_FLAGS = ("-Wl,-s", "-Wl,-z,noexecstack", "-Wl,--build-id=none", "-Wl,-Bsymbolic")
SOURCE_EDIT = f"s/{LAST_ERROR}/{LAST_ERROR_WITHOUT_DESTRUCTOR.replace('&', chr(92) + '&')}/\n"


class CompilerError(Exception):
    """All that the compiler's process printed; the cause of the error that quotes one line of it."""


def compiler_of(owner: str) -> list[str]:
    """The C++ compiler as the words of a command: ``$CXX``, which may be ``ccache g++``, else ``c++``.

    Raises:
        ExportError: There is none.
    """
    words = compiler_words()
    if words is None:
        name = os.environ.get("CXX") or "c++"
        raise ExportError(
            f"{owner}: expected a C++ compiler, got none ({name}); install one, as `apt-get install g++` does."
        )
    return words


def target_of(owner: str, compiler: Sequence[str], isa: str) -> tuple[list[str], frozenset[str]]:
    """The options with which a compiler makes code for an instruction set, and what that code asks of a CPU, in the
    words of ``/proc/cpuinfo``.

    Raises:
        ExportError: The compiler does not know the name, or does not work.
    """
    options = [f"-march={isa}"]
    macros, _ = macros_of([*compiler, *options])
    if not macros and isa.startswith("armv"):  # Zig's compiler has its own names: armv8.2-a is v8_2a
        options = [f"-mcpu=generic+{isa.removeprefix('arm').replace('.', '_').replace('-', '')}", NEVER_UNMAPPED]
        macros, _ = macros_of([*compiler, *options])
    if not macros:
        works, reason = macros_of(compiler)
        if not works:
            raise ExportError(
                f"{owner}: expected a C++ compiler that works, got {shlex.join(compiler)}: {reason}; see CXX."
            )
        known = KNOWN["aarch64" if "__aarch64__" in works else "x86-64"]
        raise ExportError(
            f"{owner}: isa: expected a name that {shlex.join(compiler)} takes for -march, or 'native', got {isa!r}; "
            f"known: {known}, ..."
        )
    return options, frozenset(flag for macro, flags in FLAGS.items() if macro in macros for flag in flags.split())


def macros_of(compiler: Sequence[str]) -> tuple[set[str], str]:
    """The macros that a compiler predefines; an empty set and the reason if it does not work."""
    ended = run_bounded([*compiler, "-dM", "-E", "-x", "c++", "/dev/null"], until(MACROS_LIMIT_S))
    if ended.code is None:
        return set(), f"no end within {MACROS_LIMIT_S:g} s"
    macros = {words[1] for line in ended.out.splitlines() if len(words := line.split()) > 1}
    if ended.code or "__cplusplus" not in macros:
        return set(), one_line(RuntimeError(ended.err)) if ended.err.strip() else format_exit(ended.code)
    return macros, ""


def compile_in_child(
    owner: str,
    graph: ExportedProgram,
    compiler: Sequence[str],
    options: Sequence[str],
    flags: frozenset[str],
    limit: float,
    with_stubs: bool = False,
) -> bytes:
    """The bytes of the model library, without symbols, paths of this machine, or an executable stack.

    Args:
        owner: The program, for messages.
        graph: The graph, without weights.
        compiler: The words of a command.
        options: The compiler's options for the instruction set.
        flags: What they ask of a CPU.
        limit: Seconds.
        with_stubs: Whether torch's libraries here are for another machine, and empty ones must stand in for them.

    Raises:
        ExportError: It cannot be compiled, or takes longer than ``limit`` seconds, or no program may run in the
            temporary folder.
    """
    vector = next((name for name, needed in VECTORS.items() if needed <= flags), "")
    graph.example_inputs = None  # the weights: only sizes and dtypes matter, and those are in the graph
    with temporary_folder(folder_for_programs(owner), "regplug-compile-") as folder:
        saved = io.BytesIO()  # torch reports a full disk by a RuntimeError without a reason
        torch.export.save(graph, saved)
        (folder / GRAPH).write_bytes(saved.getbuffer())
        if with_stubs:
            _write_stubs(owner, folder / STUBS, compiler)
        more = [f"-L{folder / STUBS}", *STUB_FLAGS] if with_stubs else []
        _write_wrapper(folder, compiler, options, more)
        command = python_command("regplug.backends.compile_child", str(folder), vector)
        ended = run_bounded(command, until(limit), _environment(folder), folder)
        if ended.code is None:
            raise ExportError(
                f"{owner}: expected the compiler to end within {limit:g} s, got no end; use a longer time_limit."
            )
        if (folder / REFUSED).exists():
            operation, _, trace = (folder / REFUSED).read_text().partition("\n")
            raise no_c_interface(owner, operation, place_in(trace, innermost_last=True))
        if ended.code or not (folder / LIBRARY).exists():
            output = ended.out + ended.err
            raise ExportError(f"{owner}: the compiler failed: {reason_in(output, ended.code)}") from CompilerError(
                output
            )
        return (folder / LIBRARY).read_bytes()


def no_c_interface(owner: str, operation: str, place: str | None) -> ExportError:
    """The error for an operation that no model library can call, and where the user's code calls it."""
    where = f" at {place}" if place else ""
    return ExportError(
        f"{owner}: operation {operation}{where}: expected one that compiled code can call, got "
        "one without a C interface in torch; use another operation, or the torchscript backend."
    )


def _write_stubs(owner: str, folder: Path, compiler: Sequence[str]) -> None:
    """Write empty libraries with the names of torch's, for the linker to record."""
    folder.mkdir()
    for name in STUB_LIBRARIES:
        words = ["-shared", "-nostdlib", f"-Wl,-soname,{name}", "-o", str(folder / name), "-x", "c++", "/dev/null"]
        ended = run_bounded([*compiler, *words], until(MACROS_LIMIT_S))
        if ended.code != 0:
            raise ExportError(f"{owner}: the compiler failed: {reason_in(ended.out + ended.err, ended.code or 0)}")


def _write_wrapper(folder: Path, compiler: Sequence[str], options: Sequence[str], more: Sequence[str]) -> None:
    """Write a script that runs the compiler so that the library names no folder of this machine, exports the interface
    alone, and asks for no executable stack."""
    (folder / HEADERS).mkdir()
    (folder / HEADERS / "omp.h").touch()  # torch's headers include it, and a compiler may lack it
    places = [(str(folder), "."), (str(Path(torch.__file__).parent), "torch"), (sys.base_prefix, "python")]
    words = [*compiler, *(f"-ffile-prefix-map={place}={name}" for place, name in places)]
    words += [
        f"-idirafter{folder / HEADERS}",
        *more,
        *LINKER_FLAGS,
        f"-Wl,--version-script={folder / SYMBOL_VERSIONS_FILE}",
    ]
    (folder / SYMBOL_VERSIONS_FILE).write_text(SYMBOL_VERSIONS)
    (folder / SOURCE_EDIT_FILE).write_text(SOURCE_EDIT)
    path = folder / COMPILER
    # Inductor names a source by a hash of its command line, which has paths. It adds -march=native, which nobody
    # asked for and a compiler for another machine does not know, and OpenMP, which serial kernels do not use and a
    # compiler may lack. torch 2.10 links libtorch, which a C++ host with libtorch_cpu alone would not find.
    path.write_text(
        "#!/bin/sh\n"
        "for word; do\n"
        "  shift\n"
        '  case "$word" in\n'
        "  -ltorch | -march=native | -fopenmp | -lgomp) continue ;;\n"
        "  -*) ;;\n"
        '  *.cpp) source="$word" ;;\n'
        "  esac\n"
        '  set -- "$@" "$word"\n'
        "done\n"
        f'${{source:+sed -i -f {shlex.quote(str(folder / SOURCE_EDIT_FILE))} "$source"}}\n'
        f'exec {shlex.join(words)} ${{source:+"-ffile-prefix-map=$source=program.cpp"}} "$@" {shlex.join(options)}\n'
    )
    path.chmod(0o700)


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not CONFIGURING.match(name)}
    return kept | {
        "CXX": str(folder / COMPILER),
        "TMPDIR": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",  # torch reads its own files in the locale's encoding
    }


def reason_in(output: str, code: int) -> str:
    """Why a compiler failed, on one line of what it printed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if " error: " in line] or [line for line in lines if "Error: " in line][-1:]
    found = errors or lines[-1:]
    return found[0] if found else f"{format_exit(code)}, and no output."
