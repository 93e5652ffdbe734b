"""Prints what commands report: columns for people, one JSON object for programs, and progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from regplug.errors import escape
from regplug.registry.streams import own_stderr, own_stdout

if TYPE_CHECKING:
    from regplug.format.manifest import Manifest

EXIT_FAILED, EXIT_USAGE, EXIT_PLUGIN, EXIT_INTERRUPTED = 1, 2, 3, 130


def say(text: object = "") -> None:
    """Print a line of data on stdout."""
    click.echo(text, file=own_stdout())


def say_needs(manifest: Manifest) -> None:
    """Print of each program whether it runs without libtorch, if the bundle says so."""
    for program in manifest.programs:
        if program.needs:
            say(f"program '{program.name}': {program.needs}")


def complain(text: str) -> None:
    """Print a line on stderr."""
    click.echo(text, file=own_stderr(), err=True)


def print_json(command: str, values: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout; ``schema`` names its format and the format's version."""
    import json

    say(json.dumps({"schema": f"regplug.{command}/1", **values}, indent=1))


def print_columns(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table in plain columns: the same in a terminal, a pipe and a file, never truncated."""
    cells = [[escape(str(cell)) for cell in row] for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    head, *lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
    say("\n".join([click.style(head, bold=True), *lines]))


@contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr which step runs and for how long; silent if stderr is not a terminal."""
    stderr = own_stderr() or sys.stderr
    if not stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=stderr), transient=True) as bar:
        task = bar.add_task(title)
        yield lambda step: bar.update(task, description=f"{title}: {step}")
