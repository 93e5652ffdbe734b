"""Model libraries of several bundles in one process: each runs its own code, and is unloaded after its last use.

As a program, ``python -m torture.libraries FIRST SECOND ...``, it opens the library of each pair's first bundle
globally, runs the second bundle's program, and prints a line for each pair with right numbers.
"""

import ctypes
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from support.consumer import build, installed
from support.damage import repin

import regplug
from torture import Figure

TESTS = Path(__file__).resolve().parent.parent
FROZEN = TESTS / "data" / "format-1" / "readout"  # its library exports every symbol
LIBRARY = "program.aotinductor.x86-64-v3.so"
STRATEGIES = {"mean": {}, "concat": {}, "pool": {}, "compress-concat": {"compressed_dim": 6}}
DISTINCT = 1100  # more than a process may have descriptors, by default


def bundles(work: Path, strategies: Iterable[str] = STRATEGIES) -> dict[str, Path]:
    """A bundle of each strategy, and the frozen one."""
    made = {}
    for strategy in strategies:
        spec = regplug.resolve(strategy, num_registers=4, hidden_dim=24, **STRATEGIES[strategy])
        regplug.export(spec, spec.build(), work / strategy, backends=["aotinductor"])
        made[strategy] = work / strategy
    return {**made, "frozen": FROZEN}


def right_pairs(pairs: Sequence[tuple[Path, Path]]) -> int:
    """How many pairs gave right numbers, all in one Python process."""
    words = [str(folder) for pair in pairs for folder in pair]
    command = [sys.executable, "-m", "torture.libraries", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS, check=False)
    if done.stderr:
        print(done.stderr[-2000:], file=sys.stderr)
    return done.stdout.count("right\n")


def dropped(folder: Path, count: int) -> tuple[int, int]:
    """Open and drop this many different libraries; gives how many were wrong, and how many descriptors are left."""
    data = (folder / LIBRARY).read_bytes()
    given, before = torch.randn(2, 4, 24), held()
    wanted = regplug.load(folder)(given)
    wrong = 0
    for number in range(count):
        (folder / LIBRARY).write_bytes(data + number.to_bytes(8, "little"))  # another digest, the same code
        repin(folder)
        wrong += not torch.allclose(regplug.load(folder, program="aotinductor")(given), wanted, atol=1e-5)
    return wrong, held() - before


def held() -> int:
    """Descriptors and mappings of model libraries in this process."""
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum("regplug-program" in one for one in links) + Path("/proc/self/maps").read_text().count("regplug-program")


def run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]:
    """See ``torture``; nothing is drawn."""
    made = bundles(work)
    progress("C++ program")
    settings = {"CMAKE_CXX_STANDARD": 17, "CMAKE_PREFIX_PATH": installed(), "WITHOUT_TORCHSCRIPT": "ON"}
    program = build(work / "build", settings=settings, target="regplug_aoti_golden") / "regplug_aoti_golden"
    return figures(work, made, program, share, progress)


def figures(
    work: Path, made: dict[str, Path], program: Path, share: float, progress: Callable[[str], None]
) -> list[Figure]:
    """A row for each way; ``program`` is ``regplug_aoti_golden``."""
    pairs = list(itertools.permutations(made.values(), 2))
    times = max(round(20 * share), 1)
    wrong = 0
    for number in range(times):
        progress(f"pairs, {number + 1} of {times}")
        wrong += len(pairs) - right_pairs(pairs)
    rows = [Figure("pairs of libraries in one process, in Python", len(pairs) * times, {"not right": wrong})]
    wrong = 0
    for number, (first, second) in enumerate(pairs):
        progress(f"C++, {number + 1} of {len(pairs)}")
        preloaded = {**os.environ, "LD_PRELOAD": str(first / LIBRARY)}
        wrong += not _is_right_in_cpp([program, second], preloaded)
        wrong += not _is_right_in_cpp([program, second, "--global", first / LIBRARY], dict(os.environ))
    rows.append(
        Figure("pairs of libraries, preloaded or opened globally, in C++", 2 * len(pairs), {"not right": wrong})
    )
    progress("distinct programs")
    count = max(round(DISTINCT * share), 20)
    wrong, left = dropped(shutil.copytree(made["pool"], work / "distinct"), count)
    bad = {"not right": wrong, "descriptors and mappings left": left}
    return [*rows, Figure("distinct programs opened and dropped in one process", count, bad)]


def _is_right_in_cpp(command: Sequence[object], env: dict[str, str]) -> bool:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        print(done.stdout + done.stderr[-2000:], file=sys.stderr)
    return done.returncode == 0


def main(*folders: str) -> None:
    """See above."""
    for first, second in zip(folders[::2], folders[1::2], strict=True):
        ctypes.CDLL(f"{first}/{LIBRARY}", mode=ctypes.RTLD_GLOBAL)
        program, module = regplug.load(second, program="aotinductor"), regplug.load(second)
        given = torch.randn(3, program.manifest.num_registers, program.manifest.hidden_dim)
        with torch.no_grad():
            torch.testing.assert_close(program(given), module(given))
        print("right", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
