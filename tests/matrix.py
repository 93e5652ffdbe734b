"""``make matrix``: every check on every installed strategy, with every installed export backend.

Prints a row for each strategy and a column for each check, and what is not as it must be; then what each AOTInductor
program needs, and its errors over libtorch and without it; then the time. Exit status 1 if something is not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import click
from support.strategies import EVERY, D, R

import regplug
from regplug.commands.printing import print_columns
from regplug.conformance import CheckResult, check_readout
from regplug.conformance.check import (
    ADVISORY,
    EXPECTED_FAILURE,
    FAILED,
    NOT_APPLICABLE,
    PASSED,
    UNEXPECTED_PASS,
)

MARKS = {PASSED: ".", FAILED: "F", ADVISORY: "a", EXPECTED_FAILURE: "x", UNEXPECTED_PASS: "P", NOT_APPLICABLE: "-"}
OPTIONS = {name: options for name, (options, _) in EVERY.items()}
OPTIONS |= {
    "regplug-nvsubquadratic:nvsubquadratic-pool": {},
    "regplug-nvsubquadratic:nvsubquadratic-compress-concat": {"compressed_dim": 6},
}
Found = tuple[list[CheckResult], tuple[str, ...]]  # of a strategy: its checks, and a row of the second table
FAST = {"compiler": "eager", "backends": ("torchscript",)}


def check(strategy: str, settings: dict) -> Found:
    """All rows of one strategy, and its row of the two ways to run a program; runs in its own process."""
    import torch

    torch.set_num_threads(1)
    spec = regplug.resolve(strategy, num_registers=R, hidden_dim=D, **OPTIONS[strategy])
    results = check_readout(spec, **settings)
    return results, () if settings == FAST else compare(spec)


def compare(spec: regplug.ReadoutSpec) -> tuple[str, ...]:
    """What an AOTInductor program needs, and its largest errors against eager, divided by the largest output."""
    import torch

    import regplug_runtime

    torch.manual_seed(0)
    module = spec.build().eval()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        regplug.export(spec, module, f"{folder}/b", backends=["aotinductor"])
        over_libtorch = regplug.load(f"{folder}/b", program="aotinductor")
        [program] = regplug.verify(f"{folder}/b").manifest.programs
        given = [torch.randn(batch, R, D) for batch in (1, 3, 64)]
        wanted = [module(one) for one in given]
        largest = max(one.abs().max().item() for one in wanted)

        def error(found: Iterable[torch.Tensor]) -> str:
            return f"{max((a - b).abs().max().item() for a, b in zip(found, wanted, strict=True)) / largest:.1e}"

        first = error([over_libtorch(one) for one in given])
        if program.properties["needs"] != "nothing":
            return program.properties["needs"], first, ""
        with regplug_runtime.open(f"{folder}/b") as without:
            return "nothing", first, error([torch.from_numpy(without.run(one.numpy())) for one in given])


def check_all(strategies: Sequence[str], settings: dict, jobs: int) -> dict[str, Found]:
    """All rows of all strategies, and on stderr how far it is."""
    found = {}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(check, strategy, settings): strategy for strategy in strategies}
        for done in as_completed(running):
            found[running[done]] = done.result()
            click.echo(f"{len(found)}/{len(strategies)} {running[done]}", err=True)
    return {strategy: found[strategy] for strategy in strategies}


def show(found: dict[str, list[CheckResult]]) -> bool:
    """Print the matrix and what is not as it must be; whether all is."""
    checks = [result.check for result in next(iter(found.values()))]
    for number, name in enumerate(checks, 1):
        click.echo(f"{number:>3} {name}")
    click.echo(", ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items()))
    rows = [
        (name, *(MARKS[result.verdict] for result in results), f"{sum(result.seconds for result in results):.1f} s")
        for name, results in found.items()
    ]
    print_columns(("", *map(str, range(1, len(checks) + 1)), ""), rows)
    every = [result for results in found.values() for result in results]
    for verdict in (EXPECTED_FAILURE, UNEXPECTED_PASS, FAILED):
        for result in (one for one in every if one.verdict == verdict):
            click.echo(f"{verdict}: {result.readout}: {result.check}: {' '.join(result.detail.split())}")
    return all(result.ok for result in every)


def chosen(words: Iterable[str]) -> list[str]:
    """The installed strategies, all or those that are named; every one needs its options above."""
    installed = [entry.full_name for entry in regplug.default_registry().readout_entries()]
    strategies = list(words) or installed
    if wrong := [name for name in strategies if name not in installed or name not in OPTIONS]:
        wanted = "installed strategies with options in tests/support/strategies.py"
        sys.exit(f"matrix: expected {wanted}, got {', '.join(wrong)}.")
    return strategies


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("strategy", nargs="*", help="distribution:name; all that are installed by default")
    parser.add_argument("--fast", action="store_true", help="the eager compiler and TorchScript alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; as many as CPUs by default")
    given = parser.parse_args()
    start = time.perf_counter()
    strategies = chosen(given.strategy)
    both = check_all(strategies, FAST if given.fast else {}, given.jobs)
    found = {strategy: results for strategy, (results, _) in both.items()}
    ok = show(found)
    if not given.fast:
        click.echo("\nAOTInductor programs: what they need, and their relative error over libtorch and without it")
        print_columns(("", "needs", "libtorch", "without"), [(strategy, *row) for strategy, (_, row) in both.items()])
    click.echo(
        f"{len(found)} strategies, {sum(map(len, found.values()))} checks in {time.perf_counter() - start:.0f} s"
    )
    if not ok:
        sys.exit(1)


if __name__ == "__main__":
    main()
