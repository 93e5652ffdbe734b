"""The ``new`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

import click

from regplug.choices import json_option
from regplug.printing import print_json, say


@click.command("new")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--strategy", metavar="NAME", help="The readout's name; from the folder's when not given.")
@json_option
def new_command(path: Path, strategy: str | None, as_json: bool) -> None:
    """Write the package of a new plugin: a readout, its entry point, tests, README, CI.

    The last part of PATH is the distribution's name, such as acme-readouts. It installs and passes its tests as it is.
    """
    from regplug.errors import ExportError
    from regplug.scaffold import check_empty, names_of, write_plugin

    path = path.resolve() if path.name in ("", "..") else path
    try:
        check_empty(path)
    except ExportError as error:
        raise click.UsageError(str(error)) from error
    names = names_of(path, strategy)
    written = write_plugin(path, names)
    if as_json:
        print_json("new", {"path": str(path), **asdict(names), "files": [str(file) for file in written]})
        return
    for file in written:
        say(path / file)
    say(
        f"\nnext:\n  pip install -e {shlex.quote(f'{path}[test]')}\n  regplug check {names.strategy}\n"
        f"  pytest {shlex.quote(str(path))}"
        f"\n\nthe readout is {names.readout_class} in {path / names.package / 'readout.py'}"
    )
