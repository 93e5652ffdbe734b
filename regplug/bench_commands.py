"""The ``bench`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from regplug.bench_page import write_page
from regplug.bench_report import DEVICES, DTYPES, HEADS, MODES, Plan, cells, circumstances, failures, title, unlike
from regplug.choices import KeyValue, chosen_spec, complete_strategy, json_option, named_by_user
from regplug.printing import print_columns, print_json, progress

AT_LEAST_ONE = click.IntRange(1)


@click.command("bench")
@click.argument("strategy", shell_complete=complete_strategy)
@click.option("--against", metavar="MODULE:CLASS", help="The module to compare with; without, ours in eager mode.")
@click.option("--num-registers", type=int, metavar="R", multiple=True, required=True, help="Repeatable.")
@click.option("--hidden-dim", type=int, metavar="D", required=True, help="Width of a register token.")
@click.option("-O", "options", type=KeyValue(), multiple=True, help="An option of the strategy; JSON, else text.")
@click.option("--batch", type=AT_LEAST_ONE, metavar="B", multiple=True, required=True, help="Repeatable.")
@click.option(
    "--tokens", type=AT_LEAST_ONE, metavar="N", default=197, show_default=True, help="Sequence that a slice is of."
)
@click.option("--mode", type=click.Choice(MODES), multiple=True, default=MODES, help="Repeatable; all by default.")
@click.option("--dtype", type=click.Choice(DTYPES), default=DTYPES[0], show_default=True)
@click.option("--device", type=click.Choice(DEVICES), default=DEVICES[0], show_default=True)
@click.option("--threads", type=AT_LEAST_ONE, default=1, show_default=True, help="Of one operation, on the CPU.")
@click.option("--rounds", type=AT_LEAST_ONE, help="Pairs of blocks a row; by default what half a second allows.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Draw the ratios, too.")
@json_option
def bench_command(
    strategy: str,
    against: str | None,
    num_registers: tuple[int, ...],
    hidden_dim: int,
    options: Any,
    batch: tuple[int, ...],
    tokens: int,
    mode: tuple[str, ...],
    dtype: str,
    device: str,
    threads: int,
    rounds: int | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure how many times faster a readout is than another module, and how sure that is."""
    if html is not None:  # now, not after minutes of measuring
        folder = html.parent
        if not html.name:
            raise click.UsageError(f"--html: expected a file, got {str(html)!r}.")
        if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            raise click.UsageError(f"--html: expected a folder that can be written into, got {str(folder)!r}.")
    specs = [chosen_spec(strategy, r, hidden_dim, None, options)[0] for r in dict.fromkeys(num_registers)]
    from regplug.benchmark import bench, build_other

    plan = Plan(
        batches=tuple(dict.fromkeys(batch)),
        tokens=tokens,
        modes=tuple(dict.fromkeys(mode)),
        dtype=dtype,
        device=device,
        threads=threads,
        rounds=rounds,
    )
    # what the other prints must not mix with what is reported
    with progress("bench") as step, redirect_stdout(sys.stderr):
        other_class = None if against is None else named_by_user("--against", against)
        others = None if other_class is None else [build_other(f"--against {against}", other_class, s) for s in specs]
        report = bench(specs, others, plan, against, step)
    if html is not None:
        write_page(html, report)
    if as_json:
        print_json("bench", asdict(report))
        return
    click.echo(f"{title(report)}: {circumstances(report)}")
    print_columns(HEADS, [cells(row) for row in report.rows])
    for line in (*failures(report), *unlike(report)):
        click.echo(line)
