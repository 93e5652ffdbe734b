"""Ten thousand rounds of open, run, reload and close in C++ and Python: memory, descriptors and threads do not grow.

As a program, ``python -m torture.soak KIND BUNDLE WEIGHTS ROUNDS`` runs the rounds in Python and prints what
``regplug_soak`` prints in C++: resident bytes, descriptors and threads, a hundred times.
"""

import functools
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from support.consumer import build, installed, readout

import regplug
import regplug_runtime
from regplug.format.read_bundle import read_bundle
from regplug.format.weights import check_state, load_tensors, save_tensors, types_of
from torture import Figure

ROUNDS = 10_000
SAMPLES = 100
WARM = 40  # samples until allocators and caches are full: one step of 2 MiB comes after about 150 rounds
# resident bytes that a round may add; a leaked weight, graph or descriptor takes hundreds
MAX_GROWTH = 64
GRAIN = 256 << 10  # allocators take memory in steps: over few rounds one step looks like growth
TESTS = Path(__file__).resolve().parent.parent
BACKENDS = ("torchscript", "aotinductor")


@dataclass(frozen=True)
class Sample:
    """What a process has open after some rounds."""

    resident: int
    descriptors: int
    threads: int


def samples_of(command: Sequence[object]) -> list[Sample]:
    """The samples that a process prints.

    Raises:
        RuntimeError: It failed.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=TESTS, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: exit status {done.returncode}: {done.stderr[-2000:]}")
    return [Sample(*map(int, line.split())) for line in done.stdout.splitlines()]


def growth(samples: Sequence[Sample], rounds: int) -> float:
    """Resident bytes per round once warm: the slope between the first and the last tenth of the samples.

    It compares the least value of each tenth, because allocators return memory in steps.
    """
    warm = [sample.resident for sample in samples[WARM:]]
    tenth = max(len(warm) // 10, 1)
    return (min(warm[-tenth:]) - min(warm[:tenth])) / ((len(warm) - tenth) * rounds / len(samples))


def figure(what: str, rounds: int, samples: Sequence[Sample]) -> Figure:
    """One row of the table."""
    first, last = samples[WARM], samples[-1]
    per_round = growth(samples, rounds)
    grown = per_round > MAX_GROWTH and per_round * rounds > GRAIN
    bad = {
        f"rounds over {MAX_GROWTH} bytes of growth": rounds if grown else 0,
        "descriptors more": max(last.descriptors - first.descriptors, 0),
        "threads more": max(last.threads - first.threads, 0),
    }
    note = f"{per_round:.1f} bytes a round; {first.resident >> 20} MiB warm, {last.resident >> 20} MiB at the end"
    return Figure(f"rounds of open, run, reload, close: {what}", rounds, bad, note=note)


def prepare(work: Path) -> tuple[Path, Path]:
    """A bundle with both programs, and other weights for it."""
    spec, module = readout("compress-concat")
    regplug.export(spec, module, work / "bundle", backends=BACKENDS)
    other = {name: value + 0.5 for name, value in module.state_dict().items()}
    (work / "other.safetensors").write_bytes(save_tensors(other))
    return work / "bundle", work / "other.safetensors"


def run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]:
    """See ``torture``; nothing is drawn."""
    progress("C++ program")
    settings = {"CMAKE_CXX_STANDARD": 17, "CMAKE_PREFIX_PATH": installed()}
    program = build(work / "build", settings=settings, target="regplug_soak") / "regplug_soak"
    return soak(work, program, share, progress)


def soak(work: Path, program: Path, share: float, progress: Callable[[str], None]) -> list[Figure]:
    """A row for each loader; ``program`` is ``regplug_soak``."""
    bundle, other = prepare(work)
    rounds = max(round(ROUNDS * share), SAMPLES)
    commands = {
        **{f"C++ {kind}": [program, kind] for kind in BACKENDS},
        **{f"Python {kind}": [sys.executable, "-m", "torture.soak", kind] for kind in ("data", *BACKENDS)},
        "regplug_runtime": [sys.executable, "-m", "torture.soak", "runtime"],
    }

    def one(what: str) -> Figure:
        samples = samples_of([*commands[what], bundle, other, rounds])
        progress(what)
        return figure(what, rounds, samples)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, commands))


# ---- the Python loaders' process


def _sample() -> Sample:
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    held, running = (len(list(Path(folder).iterdir())) for folder in ("/proc/self/fd", "/proc/self/task"))
    return Sample(resident, held, running)


def _module_round(bundle: str, weights: str, given: torch.Tensor) -> None:
    loaded = regplug.load(bundle)
    before = loaded(given)
    other = load_tensors("weights", Path(weights).read_bytes())
    check_state("weights", types_of(loaded.state_dict()), other)
    loaded.load_state_dict(other)
    if loaded(given).equal(before):
        raise RuntimeError("reload: expected other numbers, got the same.")


def _program_round(kind: str, bundle: str, weights: str, given: torch.Tensor) -> None:
    """A program has no reload in Python: the weights are only read."""
    regplug.load(bundle, program=kind)(given)
    load_tensors("weights", Path(weights).read_bytes())


def _runtime_round(bundle: str, weights: str, given: torch.Tensor) -> None:
    with regplug_runtime.open(bundle) as opened:
        before = opened.run(given.numpy())
        opened.reload(weights)
        if (opened.run(given.numpy()) == before).all():
            raise RuntimeError("reload: expected other numbers, got the same.")


ROUND_OF = {"data": _module_round, "runtime": _runtime_round}


def main(kind: str, bundle: str, weights: str, rounds: str) -> None:
    """Run the rounds."""
    manifest = read_bundle(bundle).manifest
    given = torch.randn(2, manifest.num_registers, manifest.hidden_dim)
    one_round = ROUND_OF.get(kind) or functools.partial(_program_round, kind)
    every = int(rounds) // SAMPLES
    for number in range(1, int(rounds) + 1):
        with torch.no_grad():
            one_round(bundle, weights, given)
        if number % every == 0:
            sample = _sample()
            print(sample.resident, sample.descriptors, sample.threads, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
