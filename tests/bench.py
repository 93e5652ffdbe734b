"""``make bench``: what checks and loading cost in C++, compared with ATen operations and ``torch::jit::load``.

Exports bundles, builds ``cpp/bench.cpp`` against the installed package, runs it, and prints tables of times and ratios.
It prints and asserts nothing, because timings vary between runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from support.consumer import build, installed

import regplug

SIZES = {"num_registers": 4, "hidden_dim": 384}
FILM = {"kernel_hidden_dim": 32, "num_film_layers": 3, "init_type": "small_random", "init_std": 0.5}
BACKENDS = ("torchscript", "aotinductor")
out = Console(width=None if sys.stdout.isatty() else 120)


def export(spec: regplug.ReadoutSpec, module: torch.nn.Module, folder: Path) -> Path:
    """Export with both programs."""
    regplug.export(spec, module, folder, backends=BACKENDS)
    return folder


@contextmanager
def said(what: str) -> Iterator[None]:
    """Show on stderr what is running."""
    with Console(stderr=True).status(what):
        yield


def bundles(folder: Path) -> dict[str, Path]:
    """The modules of the latency table."""
    torch.manual_seed(0)
    compress = regplug.resolve("compress-concat", **SIZES, compressed_dim=96)
    pool = regplug.resolve("pool", **SIZES)
    film = regplug.pair(compress, regplug.KernelFiLMGenerator, **FILM)
    chain = regplug.Conditioner(regplug.TokenLayout(**SIZES, start=1), compress.build(), film)
    return {
        "compress-concat": export(compress, compress.build(), folder / "compress"),
        "pool": export(pool, pool.build(), folder / "pool"),
        "chain with FiLM": export(compress, chain, folder / "chain"),
    }


def run(*words: object) -> dict:
    """One run of the benchmark program."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def show_latency(found: dict[str, dict]) -> None:
    """Microseconds of one call, and how they compare with the raw operations."""
    table = Table(title="C++, one thread, R=4, D=384, c=96: us per call (ratio to raw operations)")
    ways = ["raw operations", "torch::jit::load", "TorchScriptBundle", "AOTInductorBundle"]
    for column in ("module", "B", *ways):
        table.add_column(column, justify="left" if column == "module" else "right")
    for name, batches in found.items():
        for batch, times in batches.items():
            raw = times["raw operations"]
            table.add_row(
                name, batch.removeprefix("B="), *(f"{times[way]:.2f} ({times[way] / raw:.2f})" for way in ways)
            )
    out.print(table)


def show_opening(program: Path, folder: Path, title: str, runs: int) -> None:
    """Milliseconds of opening, of that the digest, and the peak of memory against the weights file."""
    table = Table(title=title)
    for column in ("program", "open, ms", "open again, ms", "digest of weights, ms", "peak / weights file"):
        table.add_column(column, justify="left" if column == "program" else "right")
    for kind in BACKENDS:
        found = [run(program, "open", folder, kind) for _ in range(runs)]
        middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
        peak = f"{middle['peak_bytes'] / middle['weights_bytes']:.2f}"
        table.add_row(kind, *(f"{middle[key]:.1f}" for key in ("open", "again", "digest_of_weights")), peak)
    out.print(table)


def show_exports(folder: Path) -> None:
    """Seconds of a first export, which compiles, and of a second one with other weights, which reuses the program."""
    spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=352, compressed_dim=88)
    table = Table(title="export of compress-concat, gate included: seconds")
    for column in ("", "torchscript", "aotinductor"):
        table.add_column(column, justify="right" if column else "left")
    taken: dict[str, list[float]] = {}
    for name in BACKENDS:
        for turn in ("first", "second, other weights"):
            start = time.perf_counter()
            regplug.export(spec, spec.build(), folder / f"{name}-{turn[0]}", backends=[name])
            taken.setdefault(turn, []).append(time.perf_counter() - start)
    for turn, seconds in taken.items():
        table.add_row(turn, *(f"{one:.2f}" for one in seconds))
    out.print(table)


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="also with 1 GB of weights: takes 10 GB of memory")
    large = parser.parse_args().large
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with said("exporting"):
            made = bundles(folder)
            spec = regplug.resolve("compress-concat", num_registers=4, hidden_dim=2048, compressed_dim=128)
            small = export(spec, spec.build(), folder / "small")
        with said("building"):
            settings = {"CMAKE_PREFIX_PATH": installed()}
            program = build(folder / "build", settings=settings, target="regplug_bench") / "regplug_bench"
        with said("timing"):
            times = run(program, "latency", *made.values())
        show_latency({what: times[str(path)] for what, path in made.items()})
        show_opening(program, small, "opening a bundle with 1 MB of weights, beyond libtorch's own start", 11)
        if large:
            with said("exporting 1 GB"):
                spec = regplug.resolve("compress-concat", num_registers=1, hidden_dim=16384, compressed_dim=16384)
                big = export(spec, spec.build(), folder / "big")
            show_opening(program, big, "opening a bundle with 1 GB of weights", 1)
        show_exports(folder)


if __name__ == "__main__":
    main()
