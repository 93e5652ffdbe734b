"""The system calls of a writer under strace: they are listed, and one of them fails or kills the process."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHILD = Path(__file__).with_name("writer_child.py")
# every call that takes a path or a descriptor, except for memory
CALLS = "%file,%desc"
IN_MEMORY = {"mmap", "execve"}
LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+|\?)(.*)$")


@dataclass(frozen=True)
class Call:
    """One system call: its name, its number among the calls of that name, its arguments and its result."""

    name: str
    number: int
    arguments: str
    result: str
    injected: bool = False


def tool() -> str:
    found = shutil.which("strace")
    if found is None:
        raise RuntimeError(
            "strace: expected it to be installed, got none; install it, as `apt-get install strace` does."
        )
    return found


def traced(log: Path, arguments: Sequence[object], *options: str) -> subprocess.CompletedProcess[str]:
    """Run the writer under strace with these options."""
    # faster, but it loses signals
    quick = [] if any("signal=" in option for option in options) else ["-f", "--seccomp-bpf"]
    command = [tool(), *quick, "-o", log, "-e", f"trace={CALLS}", "-e", "signal=SIGINT,SIGKILL", *options]
    return subprocess.run(
        [*command, sys.executable, CHILD, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )


def calls_between_marks(log: Path) -> list[Call]:
    """The calls of the write itself, including a last one that killed the process."""
    seen: Counter[str] = Counter()
    found: list[Call] = []
    begun = False
    for line in log.read_text(errors="replace").splitlines():
        match = LINE.match(line) or re.match(r"^(?:\d+ +)?(\w+)\((.*?)()( <unfinished.*)?$", line)
        if match is None:
            continue
        name, arguments, result, rest = match.groups()
        seen[name] += 1
        if "regplug-mark-" in arguments or "regplug-mark-" in decoded(arguments):
            if begun:
                found.append(Call("mark", 0, decoded(arguments), result))
                return found
            begun = True
        elif begun and name not in IN_MEMORY:
            found.append(Call(name, seen[name], arguments, result, "INJECTED" in (rest or "")))
    return found


def decoded(text: str) -> str:
    return bytes.fromhex("".join(re.findall(r"\\x([0-9a-f]{2})", text))).decode(errors="replace")
