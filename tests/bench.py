"""``make bench``: what checks and loading cost in C++, compared with ATen operations and ``torch::jit::load``.

Exports bundles, builds ``cpp/bench.cpp`` against the installed package, runs it, and prints tables of times and ratios.
It prints and asserts nothing, because timings vary between runs.
"""

from __future__ import annotations

import argparse
import json
import re
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
from safetensors.torch import save_file
from support.consumer import build, installed

import regplug
from regplug.backends.cpu import cpu_flags
from regplug.nn.readouts.join_parts import JoinPart

HIDDEN_DIM, COMPRESSED_DIM, TOKENS = 384, 96, 201
PARTS = (
    JoinPart("cls", "mean", 0, 1),
    JoinPart("registers", "compress-concat", 1, 5, {"compressed_dim": COMPRESSED_DIM}),
    JoinPart("patches", "mean", 5),
)
FILM = {"kernel_hidden_dim": 32, "num_film_layers": 3, "init_type": "small_random", "init_std": 0.5}
BACKENDS = ("torchscript", "aotinductor")
RUN = Path(regplug.__file__).parent / "share" / "regplug-run"
out = Console(width=None if sys.stdout.isatty() else 120)


def export(spec: regplug.ReadoutSpec, module: torch.nn.Module, folder: Path, isa: str | None = None) -> Path:
    """Export with both programs."""
    regplug.export(spec, module, folder, backends=BACKENDS, settings={"aotinductor": {"isa": isa and [isa]}})
    return folder


@contextmanager
def said(what: str) -> Iterator[None]:
    """Show on stderr what is running."""
    with Console(stderr=True).status(what):
        yield


def bundles(folder: Path) -> dict[str, Path]:
    """The modules of the latency table."""
    made = {}
    for num_registers in (4, 14):
        torch.manual_seed(0)
        sizes = {"num_registers": num_registers, "hidden_dim": HIDDEN_DIM}
        compress = regplug.resolve("compress-concat", **sizes, compressed_dim=COMPRESSED_DIM)
        pool = regplug.resolve("pool", **sizes)
        film = regplug.pair(compress, regplug.KernelFiLMGenerator, **FILM)
        chain = regplug.Conditioner(regplug.TokenLayout(**sizes, start=1), compress.build(), film)
        rows = [
            ("compress-concat", compress, compress.build(), None),
            ("pool", pool, pool.build(), None),
            ("chain with FiLM", compress, chain, None),
        ]
        if "avx512vl" in cpu_flags().present:  # pool is bound by memory: wider vectors matter
            rows.append(("pool, x86-64-v4", pool, pool.build(), "x86-64-v4"))
        for name, spec, module, isa in rows:
            title = f"{name}, R={num_registers}"
            made[title] = export(spec, module, folder / title.replace(" ", "-"), isa)
    join = regplug.resolve("join", num_registers=TOKENS, hidden_dim=HIDDEN_DIM, parts=PARTS)
    for isa in (None, "x86-64-v4") if "avx512vl" in cpu_flags().present else (None,):
        title = f"join of 3 groups, T={TOKENS}" + (f", {isa}" if isa else "")
        made[title] = export(join, join.build(), folder / title.replace(" ", "-"), isa)
    return made


def run(*words: object) -> dict:
    """One run of the benchmark program."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def show_latency(found: dict[str, dict]) -> None:
    """Microseconds of one call, and how they compare with the raw operations."""
    table = Table(title=f"C++, one thread, D={HIDDEN_DIM}, c={COMPRESSED_DIM}: us per call (ratio to raw operations)")
    ways = [
        "raw operations",
        "torch::jit::load",
        "TorchScriptBundle",
        "torch::inductor",
        "AOTInductorBundle",
        "without libtorch",
    ]
    for column in ("module", "B", *ways):
        table.add_column(column, justify="left" if column == "module" else "right")
    for name, batches in found.items():
        for size, times in sorted((int(batch.removeprefix("B=")), times) for batch, times in batches.items()):
            raw = times["raw operations"]
            table.add_row(name, str(size), *(f"{times[way]:.2f} ({times[way] / raw:.2f})" for way in ways))
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


def show_starts(folder: Path, bundle: Path) -> None:
    """Whole processes of regplug-run, from their start to the first vector, over libtorch and without it."""
    registers = folder / "registers.safetensors"
    save_file({"registers": torch.zeros(1, 4, HIDDEN_DIM)}, registers)
    programs = {
        name: build(folder / f"run-{name}", RUN, {"CMAKE_PREFIX_PATH": installed(), "REGPLUG_RUN_WITH": name})
        for name in ("aotinductor", "runtime")
    }
    table = Table(title="regplug-run: a whole process, from its start to one vector")
    for column in ("over", "ms", "program and its libraries, MB"):
        table.add_column(column, justify="left" if column == "over" else "right")
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(11):
        for name, built in programs.items():
            start = time.perf_counter()
            subprocess.run([built / "regplug-run", bundle, registers, folder / "out.safetensors"], check=True)
            taken[name].append(1000 * (time.perf_counter() - start))
    for name, rows in taken.items():
        program = programs[name] / "regplug-run"
        subprocess.run(["strip", program], check=True)
        linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        files = [program, *(Path(path) for path in re.findall(r"=> (/\S+torch\S+|/\S+libc10\S+)", linked))]
        size = sum(path.stat().st_size for path in files) / 1e6
        table.add_row(
            "libtorch" if name == "aotinductor" else name,
            f"{statistics.median(rows):.0f}",
            f"{size:.1f}",
        )
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
            settings = {"CMAKE_PREFIX_PATH": installed(), "BENCH": "ON"}
            program = build(folder / "build", settings=settings, target="regplug_bench") / "regplug_bench"
        with said("timing"):
            times = run(program, "latency", *made.values())
        show_latency({what: times[str(path)] for what, path in made.items()})
        show_starts(folder, made["compress-concat, R=4"])
        show_opening(program, small, "opening a bundle with 1 MB of weights, beyond libtorch's own start", 11)
        if large:
            with said("exporting 1 GB"):
                spec = regplug.resolve("compress-concat", num_registers=1, hidden_dim=16384, compressed_dim=16384)
                big = export(spec, spec.build(), folder / "big")
            show_opening(program, big, "opening a bundle with 1 GB of weights", 1)
        show_exports(folder)


if __name__ == "__main__":
    main()
