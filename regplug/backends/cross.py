"""The tools for a program of another machine: a compiler that makes it, and an emulator that runs it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from regplug.backends.child_process import run_bounded, until
from regplug.backends.compiler import compiler_words
from regplug.backends.compiling import MACROS_LIMIT_S, macros_of
from regplug.errors import ExportError

COMPILER = "aarch64-linux-gnu-g++"
ZIG = (sys.executable, "-m", "ziglang", "c++")  # of the Python package
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
INSTALL = (
    "`apt-get install g++-aarch64-linux-gnu qemu-user-static`, or `pip install ziglang` and `apt-get install "
    "qemu-user-static libstdc++6-arm64-cross`"
)
# Zig's compiler makes programs for this machine unless told otherwise; only it knows a target with a glibc version.
ZIG_TARGET = ("-target", "aarch64-linux-gnu.2.28")
LINKER = "ld-linux-aarch64.so.1"  # the dynamic linker, whose folder has the machine's other libraries
LIBRARIES = ("/lib", "/usr/aarch64-linux-gnu/lib")  # where it is if the compiler has none: Debian's folders


@dataclass(frozen=True)
class CrossTools:
    """What makes and runs programs for aarch64 here.

    Args:
        compiler: The words of a command.
        emulator: The words of a command, to which a program and its arguments are added.
    """

    compiler: Sequence[str]
    emulator: Sequence[str]


def cross_tools(owner: str, named: str | None) -> CrossTools:
    """The compiler for aarch64, as a user named it or else Debian's or Zig's, and the emulator.

    Raises:
        ExportError: One is missing, or the compiler is for another machine.
        OSError: The compiler cannot be started.
    """
    compiler = compiler_words(named or COMPILER)
    if compiler is None and named is None and find_spec("ziglang"):
        compiler = list(ZIG)
    emulator = next(filter(None, map(shutil.which, EMULATORS)), None)
    if named and compiler is None:
        raise ExportError(
            f"{owner}: compiler: expected a command that compiles for aarch64, got {named!r}, which is not there."
        )
    if compiler is None or emulator is None:
        wanted = {COMPILER: compiler, EMULATORS[0]: emulator}
        missing = [name for name, found in wanted.items() if found is None]
        raise ExportError(
            f"{owner}: expected a compiler and an emulator for aarch64, got no {' and no '.join(missing)}; install "
            f"them: {INSTALL}."
        )
    compiler = _for_aarch64(owner, compiler)
    # both are started in other folders
    compiler = [str(Path(compiler[0]).absolute()), *compiler[1:]]
    return CrossTools(compiler, [str(Path(emulator).absolute()), *_libraries(owner, compiler)])


def _for_aarch64(owner: str, compiler: list[str]) -> list[str]:
    """The compiler, with the target if it is Zig's.

    Raises:
        ExportError: It is for another machine.
    """
    macros, reason = macros_of(compiler)
    if "__aarch64__" in macros:
        return compiler
    zig = [*compiler, *ZIG_TARGET]
    if "__aarch64__" in macros_of(zig)[0]:
        return zig
    why = f": {reason}" if reason else ", which compiles for another machine"
    raise ExportError(
        f"{owner}: compiler: expected a command that compiles for aarch64, got {shlex.join(compiler)}{why}."
    )


def _libraries(owner: str, compiler: Sequence[str]) -> list[str]:
    """The emulator's options for the folder with the machine's C library.

    Raises:
        ExportError: There is none.
    """
    if "QEMU_LD_PREFIX" in os.environ:  # the user's own
        return []
    asked = run_bounded([*compiler, f"-print-file-name={LINKER}"], until(MACROS_LIMIT_S))
    places = [Path(os.path.normpath(asked.out.strip())), *(Path(folder, LINKER) for folder in LIBRARIES)]
    for place in places:
        if place.is_absolute() and place.exists():
            return ["-L", str(place.parent.parent)]
    raise ExportError(
        f"{owner}: expected a C library for aarch64, with which the emulator runs programs, got none; install one, as "
        "`apt-get install libstdc++6-arm64-cross` does, or name the folder that has it as lib/ in QEMU_LD_PREFIX."
    )
