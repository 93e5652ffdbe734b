"""The ``run`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regplug.commands.printing import EXIT_FAILED, EXIT_INTERRUPTED, complain, print_columns, print_json, say
from regplug.commands.shared_options import KeyValue, digest_option, follow_links_option, json_option, layout_option
from regplug.registry.streams import own_stderr

if TYPE_CHECKING:
    from regplug.commands.run.run import Engine, Outcome, Progress
    from regplug.format.manifest import Manifest
    from regplug.registry.layout import TokenLayout

FORMATS = ("parquet", "arrow", "safetensors")
ENGINES = ("local", "ray")


@click.command("run")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="The folder of the results.")
@click.option(
    "--status", is_flag=False, type=click.Path(path_type=Path), metavar="DIR", help="Say what a folder of results has."
)
@click.option(
    "--format", "kind", type=click.Choice(FORMATS), help="Of the results; by default that of the first input."
)
@click.option(
    "--column",
    "columns",
    type=KeyValue(),
    multiple=True,
    metavar="INPUT=COLUMN",
    help="The column of an input, if it has another name. Repeatable.",
)
@click.option(
    "--carry",
    metavar="NAME,NAME|all",
    help="Columns to copy to the results, as a line of CSV; all: every column but the inputs.",
)
@layout_option("Which tokens are registers, if the column holds all tokens")
@click.option("--cast", is_flag=True, help="Round values to the dtype that the bundle takes.")
@click.option("--preprocess", metavar="MODULE:FUNCTION", help="From a Pillow image to the bundle's input.")
@click.option("--program", metavar="NAME", help="Run this program of the bundle instead of the installed module.")
@digest_option
@follow_links_option
@click.option("--batch", type=click.IntRange(1), default=1024, show_default=True, help="Samples in each call.")
@click.option("--workers", type=click.IntRange(1), help="Processes, one thread each; as many as cores by default.")
@click.option(
    "--on-error",
    type=click.Choice(("stop", "skip")),
    default="stop",
    show_default=True,
    help="After a file or part that fails: begin no other, or go on.",
)
@click.option("--force", is_flag=True, help="Delete the folder's results of another bundle or other options.")
@click.option("--engine", type=click.Choice(ENGINES), default="local", show_default=True, help="What runs the work.")
@click.option("--ray-address", metavar="ADDRESS", help="The Ray cluster; by default a new one on this machine.")
@json_option
def run_command(
    bundle: Path | None,
    inputs: tuple[str, ...],
    output: Path | None,
    status: Path | None,
    kind: str | None,
    columns: Any,
    carry: str | None,
    layout: Any,
    cast: bool,
    preprocess: str | None,
    program: str | None,
    digest: str | None,
    follow_links: bool,
    batch: int,
    workers: int | None,
    on_error: str,
    force: bool,
    engine: str,
    ray_address: str | None,
    as_json: bool,
) -> None:
    """Run a bundle over files of registers, tokens or images.

    INPUT is a Parquet, Arrow or safetensors file, a folder, a pattern, or an address that fsspec knows. Each file, or
    each part of about 128 MiB of a large one, has its own file of results, with its rows in the same order. Run the
    command again after an interrupt: what is done is left out.
    """
    if status is not None:
        if bundle is not None or output is not None:
            raise click.UsageError("--status: expected the folder alone, got a bundle or --output too.")
        _report_status(status, as_json)
        return
    if bundle is None or not inputs or output is None:
        raise click.UsageError("run: expected BUNDLE INPUT... -o DIR, or --status DIR, got less.")
    if ray_address is not None and engine != "ray":
        raise click.UsageError("--ray-address: expected --engine ray too, got none.")
    from regplug.commands.run.addresses import find_files
    from regplug.commands.run.job import Job
    from regplug.commands.run.mapper import BundleMapper, read_files
    from regplug.commands.run.run import run_bundle

    files = find_files(inputs, output)
    read = read_files(bundle, digest=digest, program=program, follow_links=follow_links)
    mapper = BundleMapper(
        read,
        program=program,
        columns=dict(columns),
        layout=_layout(layout, read.manifest),
        cast=cast,
        preprocess=preprocess,
    )
    job = Job(mapper, output.absolute(), kind or files[0].kind, _names(carry), batch)
    begun = time.monotonic()
    try:
        with _bar() as bar:
            outcome = run_bundle(
                job,
                files,
                _engine(engine, workers, ray_address),
                stop=on_error == "stop",
                force=force,
                progress=bar,
            )
    except KeyboardInterrupt:
        complain("interrupted: what is done is kept; run the command again to do the rest.")
        click.get_current_context().exit(EXIT_INTERRUPTED)
    _report(outcome, output, time.monotonic() - begun, as_json)
    if outcome.failed:
        click.get_current_context().exit(EXIT_FAILED)


def _names(carry: str | None) -> tuple[str, ...]:
    if not carry:
        return ()
    try:
        return tuple(next(csv.reader([carry], skipinitialspace=True)))
    except csv.Error as error:
        raise click.UsageError(f"--carry: expected names as in a line of CSV, got {carry!r}: {error}.") from error


def _layout(fields: Any, manifest: Manifest) -> TokenLayout | None:
    if not fields:
        return None
    from regplug.registry.layout import TokenLayout

    sizes = {"num_registers": manifest.num_registers, "hidden_dim": manifest.hidden_dim}
    return TokenLayout.from_dict({**sizes, **dict(fields)})


def _engine(name: str, workers: int | None, ray_address: str | None) -> Engine:
    if name == "ray":
        from regplug.commands.run.ray_engine import run_on_ray

        return partial(run_on_ray, workers=workers, address=ray_address)
    from regplug.commands.run.local_engine import run_locally
    from regplug.commands.worker_processes import usable_cores

    return partial(run_locally, workers=workers or usable_cores())


def _report(outcome: Outcome, output: Path, seconds: float, as_json: bool) -> None:
    if as_json:
        print_json("run", {"output": str(output), "seconds": seconds, **asdict(outcome)})
        return
    for name, reason in outcome.failed.items():
        complain(f"failed {name}: {reason}")
    speed = f", {outcome.rows / seconds:,.0f} rows/s" if outcome.rows else ""
    counts = {
        "written": outcome.written,
        "done before": outcome.skipped,
        "failed": len(outcome.failed),
        "not begun": outcome.left,
        "of inputs that were not named now": outcome.others,
    }
    files = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    say(f"wrote {outcome.rows:,} rows to {output} in {seconds:.1f} s{speed}; files: {files or 'none'}")
    if outcome.left:
        say("the others were not begun because one failed; --on-error skip goes on.")


def _report_status(folder: Path, as_json: bool) -> None:
    from regplug.commands.run.status import status_of

    found = status_of(folder)
    if as_json:
        print_json("run-status", found)
    else:
        recipe = found["recipe"]
        say(f"bundle {recipe['bundle']}, {recipe['strategy']}, run by {recipe['program'] or 'the installed module'}")
        total = "unknown" if found["units"] is None else f"{found['units']:,}"
        say(f"done {found['done']:,} of {total} files, {found['rows']:,} rows")
        rows = [(name, "failed", reason) for name, reason in found["failed"].items()]
        rows += [(name, "damaged", reason) for name, reason in found["damaged"].items()]
        if rows:
            print_columns(("file", "state", "reason"), rows)
        if found["damaged"]:
            say("delete the damaged files, and run the command again.")
        elif not found["complete"]:
            say("run the command again to do the rest.")
    if not found["complete"]:
        click.get_current_context().exit(EXIT_FAILED)


class _Bar:
    """A bar of the rows that are done; nothing without a terminal."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task: Any = None

    def start(self, rows: int, units: int) -> None:
        if self._bar is not None:
            self._task = self._bar.add_task(f"{units:,} files", total=rows)

    def add(self, rows: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=rows)


@contextmanager
def _bar() -> Iterator[Progress]:
    stderr = own_stderr() or sys.stderr
    if not stderr.isatty():
        yield _Bar(None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        """Rows in a second."""

        def render(self, task: Any) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f} rows/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows"),
    )
    with Progress(*columns, Speed(), TimeRemainingColumn(), console=Console(file=stderr), transient=True) as bar:
        yield _Bar(bar)
