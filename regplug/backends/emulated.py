"""Runs a program of another machine in an emulator, one process for each call.

What runs there is ``share/regplug-runtime/run_library.cpp`` over ``regplug::runtime``, compiled once and kept in the
cache.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from regplug.backends.cache import find, keep, key_of, sole_maker
from regplug.backends.child_process import Ended, format_exit, run_bounded, until
from regplug.backends.compiling import reason_in
from regplug.backends.cross import CrossTools
from regplug.backends.interface import Run
from regplug.backends.program_folder import folder_for_programs
from regplug.backends.python_child import import_path
from regplug.errors import BundleError, ExportError, one_line
from regplug.format.temporary import temporary_folder
from regplug.format.weights import load_tensors, save_tensors

CHECKER, LIBRARY, INPUTS, OUTPUTS = "run-library", "program.so", "in.safetensors", "out.safetensors"
FLAGS = ("-std=c++17", "-O1", "-DREGPLUG_RUNTIME", "-Wl,-s")
LIBRARIES = ("-ldl", "-lpthread")
OTHER_SOURCES = ("c_interface", "cblas", "kernels_v")  # the C library, and mathematics that is not for aarch64
# each header of others, and where it may be inside site-packages or the system's headers
HEADERS = {
    "Eigen/Core": ("cmeel.prefix/include/eigen3", "eigen3"),
    "nlohmann/json.hpp": ("nlohmann_json/include",),
}


def emulated(owner: str, tools: CrossTools, library: bytes, weights: Sequence[Tensor], limit: float) -> Run:
    """A model library as a function that runs it in the emulator.

    Args:
        owner: The program, for messages.
        tools: The compiler and the emulator.
        library: The library's bytes.
        weights: Its inputs after those of the module, contiguous.
        limit: Seconds for each call.

    Raises:
        ExportError: What runs it cannot be compiled.
    """
    checker = _checker(owner, tools, limit)
    command = [*tools.emulator, CHECKER, LIBRARY, INPUTS, OUTPUTS]

    def run(*given: Tensor) -> list[Tensor]:
        with temporary_folder(folder_for_programs(owner), "regplug-emulated-") as folder:
            for name, data in ((CHECKER, checker), (LIBRARY, library), (INPUTS, _numbered([*given, *weights]))):
                (folder / name).write_bytes(data)
            (folder / CHECKER).chmod(0o700)
            ended = run_bounded(command, until(limit), folder=folder)
            name = Path(tools.emulator[0]).name
            if ended.code is None:
                raise BundleError(f"{owner}: expected {name} to end within {limit:g} s, got no end.")
            if ended.code:
                raise BundleError(f"{owner}: expected {name} to run it, got {_reason(ended)}.")
            if not (folder / OUTPUTS).exists():
                raise BundleError(f"{owner}: expected outputs of {name}, got none.")
            return list(load_tensors(f"{owner}: outputs", bytearray((folder / OUTPUTS).read_bytes())).values())

    return run


def _numbered(tensors: Sequence[Tensor]) -> bytes:
    return save_tensors({f"{index:04}": tensor for index, tensor in enumerate(tensors)})


def _reason(ended: Ended) -> str:
    said = ended.err.strip() or ended.out.strip()
    how = format_exit(ended.code or 0)
    return f"{how}: {one_line(RuntimeError(said)).rstrip('.')}" if said else how


def _checker(owner: str, tools: CrossTools, limit: float) -> bytes:
    """The program that runs libraries, from the cache if it is there."""
    package = Path(str(files("regplug")))
    folder = package / "share" / "regplug-runtime"
    sources = [path for path in sorted(folder.glob("*.cpp")) if not path.name.startswith(OTHER_SOURCES)]
    includes = [str(package / "include"), *(_headers(owner, header) for header in HEADERS)]
    read = [*folder.iterdir(), *(package / "include" / "regplug").rglob("*.[hi]*")]
    version = run_bounded([*tools.compiler, "--version"], until(limit)).out
    texts = {str(path.relative_to(package)): path.read_text("utf-8") for path in read}
    key = key_of([CHECKER, tools.compiler, version, FLAGS, texts])
    with sole_maker(key):
        if (kept := find(key)) is not None:
            return kept[1][CHECKER]
        command = [*tools.compiler, *FLAGS, *(f"-isystem{one}" for one in includes), *map(str, sources)]
        with temporary_folder(folder_for_programs(owner), "regplug-compile-") as place:
            ended = run_bounded([*command, "-o", str(place / CHECKER), *LIBRARIES], until(limit), folder=place)
            if ended.code != 0:
                said = reason_in(ended.out + ended.err, ended.code or 0).rstrip(".")
                why = f"no end within {limit:g} s" if ended.code is None else said
                raise ExportError(
                    f"{owner}: expected {shlex.join(tools.compiler)} to compile regplug's runtime, got {why}."
                )
            made = (place / CHECKER).read_bytes()
        words = {"holds": CHECKER, "strategy": "", "num_registers": "", "hidden_dim": ""}
        words |= {"backend": "aotinductor", "torch": torch.__version__}
        keep(key, {**words, "settings": {"compiler": shlex.join(tools.compiler)}}, {CHECKER: made})
        return made


def _headers(owner: str, header: str) -> str:
    """The folder that has a header of a library that regplug's runtime needs."""
    for root in (*import_path(), "/usr/include", "/usr/local/include"):
        for inside in HEADERS[header]:
            if (Path(root) / inside / header).is_file():
                return str(Path(root) / inside)
    raise ExportError(
        f"{owner}: expected the header {header}, got none; install it, as `pip install 'regplug[cpp]'` does."
    )
