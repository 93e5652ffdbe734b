"""Runs the compiler that makes a model library in a child process, which may hang or die; its settings are its own."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.export import ExportedProgram

from regplug.backends.compiler import compiler_words
from regplug.backends.inductor_private import LAST_ERROR, LAST_ERROR_WITHOUT_DESTRUCTOR
from regplug.backends.program_folder import program_folder, why_not
from regplug.backends.python_child import python_command
from regplug.errors import ExportError, one_line, place_in
from regplug.format.temporary import temporary_folder

# what a compiler defines when it may use an instruction set, and the word of /proc/cpuinfo for it; those that
# compilers use unasked
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
}
# Inductor's vector classes, and what their code uses
VECTORS = {
    "VecAVX512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"},
    "VecAVX2": {"avx2", "fma", "f16c"},
}
# whatever configures torch's compiler from outside would make another library than the settings say
CONFIGURING = re.compile(r"TORCH_|TORCHINDUCTOR_|TORCHDYNAMO_|AOT_INDUCTOR_|AOTINDUCTOR_|ATEN_CPU_CAPABILITY|CXX$")
GRAPH, LIBRARY, COMPILER, EXPORTED, EDITED = "graph.pt2", "program.so", "c++", "exported", "edited"
REFUSED = "refused"  # the operation that no library can hold, and the trace of its call
# A process may have several model libraries, which all define the same C++ names: none may be bound to another's, so
# the interface alone is visible, and the library's own calls of it stay inside.
SYMBOL_VERSIONS = "{ global: AOTInductor*; local: *; };\n"
SOURCE_EDIT = f"s/{LAST_ERROR}/{LAST_ERROR_WITHOUT_DESTRUCTOR.replace('&', chr(92) + '&')}/\n"
LINKER_FLAGS = ("-Wl,-s", "-Wl,-z,noexecstack", "-Wl,--build-id=none", "-Wl,-Bsymbolic")


class CompilerError(Exception):
    """All that the compiler's process printed, chained to the error that has one line of it."""


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


CPLUSPLUS = "#define __cplusplus "  # among the macros of every C++ compiler


def flags_of(owner: str, compiler: Sequence[str], isa: str) -> frozenset[str]:
    """What a CPU must have for code of this ``-march``, in the words of ``/proc/cpuinfo``.

    Raises:
        ExportError: The compiler does not know the name, or does not work.
    """
    words = ["-dM", "-E", "-x", "c++", "/dev/null"]
    done = subprocess.run([*compiler, f"-march={isa}", *words], capture_output=True, text=True, check=False)
    if done.returncode or CPLUSPLUS not in done.stdout:
        plain = subprocess.run([*compiler, *words], capture_output=True, text=True, check=False)
        if plain.returncode or CPLUSPLUS not in plain.stdout:
            reason = one_line(RuntimeError(plain.stderr)) if plain.stderr.strip() else f"exit code {plain.returncode}"
            raise ExportError(
                f"{owner}: expected a C++ compiler that works, got {shlex.join(compiler)}: {reason}; see CXX."
            )
        raise ExportError(
            f"{owner}: isa: expected a name that {shlex.join(compiler)} takes for -march, or 'native', got {isa!r}; "
            "known: x86-64-v2, x86-64-v3, x86-64-v4, native, haswell, icelake-server, znver3, ..."
        )
    defined = {words[1] for line in done.stdout.splitlines() if len(words := line.split()) > 1}
    return frozenset(flag for macro, flag in FLAGS.items() if macro in defined)


def compile_in_child(
    owner: str, graph: ExportedProgram, compiler: Sequence[str], isa: str, flags: frozenset[str], limit: float
) -> bytes:
    """The bytes of the model library, without symbols, paths of this machine, or a wish for an executable stack.

    Raises:
        ExportError: It cannot be compiled, or takes longer than ``limit`` seconds, or no program may run in the
            temporary folder.
    """
    vector = next((name for name, used in VECTORS.items() if used <= flags), "")
    graph.example_inputs = None  # the weights: only sizes and dtypes matter, and those are in the graph
    parent = program_folder()
    if parent is None:
        given = Path(tempfile.gettempdir())
        raise ExportError(
            f"{owner}: expected a temporary folder in which programs may be made and run, got {given}, "
            f"{why_not(given)}; set TMPDIR to another folder."
        )
    with temporary_folder(parent, "regplug-compile-") as folder:
        saved = io.BytesIO()  # torch reports a full disk by a RuntimeError without a reason
        torch.export.save(graph, saved)
        (folder / GRAPH).write_bytes(saved.getbuffer())
        _write_wrapper(folder, compiler, isa)
        command = python_command("regplug.backends.compile_child", str(folder), vector)
        with (folder / "output").open("wb") as output:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=_environment(folder),
                cwd=folder, start_new_session=True,
            )  # fmt: skip
            try:
                code = child.wait(limit)
            except subprocess.TimeoutExpired:
                raise ExportError(
                    f"{owner}: expected the compiler to end within {limit:g} s, got no end; use a longer time_limit."
                ) from None
            finally:
                _end(child)
        if (folder / REFUSED).exists():
            operation, _, trace = (folder / REFUSED).read_text().partition("\n")
            raise no_c_interface(owner, operation, place_in(trace, innermost_last=True))
        if code or not (folder / LIBRARY).exists():
            said = (folder / "output").read_text(errors="replace")
            raise ExportError(f"{owner}: the compiler failed: {_reason(said, code)}") from CompilerError(said)
        return (folder / LIBRARY).read_bytes()


def no_c_interface(owner: str, operation: str, place: str | None) -> ExportError:
    """The error of an operation that no model library can call, and where it is called."""
    where = f" at {place}" if place else ""
    return ExportError(
        f"{owner}: operation {operation}{where}: expected one that compiled code can call, got "
        "one without a C interface in torch; use another operation, or the torchscript backend."
    )


def _write_wrapper(folder: Path, compiler: Sequence[str], isa: str) -> None:
    """A compiler that names no folder of this machine, keeps no symbols but those of the interface, and asks for no
    executable stack."""
    places = [(str(folder), "."), (str(Path(torch.__file__).parent), "torch"), (sys.base_prefix, "python")]
    words = [*compiler, *(f"-ffile-prefix-map={place}={name}" for place, name in places)]
    words += [*LINKER_FLAGS, f"-Wl,--version-script={folder / EXPORTED}"]
    (folder / EXPORTED).write_text(SYMBOL_VERSIONS)
    (folder / EDITED).write_text(SOURCE_EDIT)
    path = folder / COMPILER
    # Inductor names a source by a hash of its command line, folders and all; it says -march=native, and the last one
    # counts; torch 2.10 links libtorch too, which a C++ host that has libtorch_cpu alone would not find
    path.write_text(
        "#!/bin/sh\n"
        "for word; do\n"
        "  shift\n"
        '  case "$word" in -ltorch) continue ;; -*) ;; *.cpp) source="$word" ;; esac\n'
        '  set -- "$@" "$word"\n'
        "done\n"
        f'${{source:+sed -i -f {shlex.quote(str(folder / EDITED))} "$source"}}\n'
        f'exec {shlex.join(words)} ${{source:+"-ffile-prefix-map=$source=program.cpp"}} "$@" -march={isa}\n'
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


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and the compilers that it started, if they still run."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _reason(output: str, code: int) -> str:
    """What the child said of its end, on one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if " error: " in line] or [line for line in lines if "Error: " in line][-1:]
    told = told or lines[-1:]
    return told[0] if told else f"exit code {code}, and not a word."
