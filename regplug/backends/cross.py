"""The tools for a program of another machine: a compiler that makes it, and an emulator that runs it."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regplug.backends.child_process import run_bounded, until
from regplug.backends.compiler import compiler_words
from regplug.backends.compiling import MACROS_LIMIT_S, macros_of
from regplug.errors import ExportError

COMPILER = "aarch64-linux-gnu-g++"
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
PACKAGES = "g++-aarch64-linux-gnu qemu-user-static"
LINKER = "ld-linux-aarch64.so.1"  # the dynamic linker, whose folder has the machine's other libraries


@dataclass(frozen=True)
class CrossTools:
    """What makes and runs programs for aarch64 here.

    Args:
        compiler: The words of a command.
        emulator: The path of qemu's program for one process.
    """

    compiler: Sequence[str]
    emulator: str

    def command(self, *words: str) -> list[str]:
        """The command that runs a program for aarch64, with the libraries that the compiler has for it.

        Raises:
            OSError: The compiler cannot be started.
        """
        return [self.emulator, *self._prefix(), *words]

    def _prefix(self) -> list[str]:
        if "QEMU_LD_PREFIX" in os.environ:  # the user's own
            return []
        asked = run_bounded([*self.compiler, f"-print-file-name={LINKER}"], until(MACROS_LIMIT_S))
        path = os.path.normpath(asked.out.strip())
        return ["-L", str(Path(path).parent.parent)] if Path(path).is_absolute() else []


def cross_tools(owner: str, named: str | None) -> CrossTools:
    """The compiler for aarch64, as a user named it or else Debian's, and the emulator.

    Raises:
        ExportError: One is missing, or the compiler is for another machine.
    """
    compiler = compiler_words(named or COMPILER)
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
            f"both, as `apt-get install {PACKAGES}` does."
        )
    macros, reason = macros_of(compiler)
    if "__aarch64__" not in macros:
        why = f": {reason}" if reason else ", which compiles for another machine"
        raise ExportError(
            f"{owner}: compiler: expected a command that compiles for aarch64, got {shlex.join(compiler)}{why}."
        )
    # both are started in other folders
    return CrossTools([str(Path(compiler[0]).absolute()), *compiler[1:]], str(Path(emulator).absolute()))
