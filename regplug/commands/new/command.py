"""The ``new`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

import click

from regplug.commands.printing import print_json, say
from regplug.commands.shared_options import json_option


@click.command("new")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--strategy", metavar="NAME", help="The readout's name. Default: from the folder's name.")
@click.option(
    "--readout", "kinds", flag_value="readout", multiple=True, help="With a readout; the default if no kind is given."
)
@click.option("--backbone", "kinds", flag_value="backbone", multiple=True, help="With a backbone, NAME-vit.")
@click.option("--film", "kinds", flag_value="film", multiple=True, help="With a FiLM generator, NAME-film.")
@click.option("--backend", "kinds", flag_value="backend", multiple=True, help="With an export backend, NAME-graph.")
@json_option
def new_command(path: Path, strategy: str | None, kinds: tuple[str, ...], as_json: bool) -> None:
    """Write the package of a new plugin.

    It has code, entry points, tests, a README and CI. The last part of PATH is the distribution's name, such as
    acme-readouts. The package installs and passes its tests unchanged. A plugin may offer several kinds. Its README and
    CI install regplug from the place that the variable REGPLUG names: a name on an index, a folder, or git+https://...
    """
    from regplug.commands.new.scaffold import KINDS, check_empty, names_of, write_plugin
    from regplug.errors import ExportError

    path = path.resolve() if path.name in ("", "..") else path
    try:
        check_empty(path)
    except ExportError as error:
        raise click.UsageError(str(error)) from error
    names = names_of(path, strategy)
    kinds = tuple(kind for kind in KINDS if kind in kinds) or ("readout",)
    written = write_plugin(path, names, kinds)
    if as_json:
        files = [str(file) for file in written]
        print_json("new", {"path": str(path), **asdict(names), "kinds": kinds, "files": files})
        return
    for file in written:
        say(path / file)
    checked = {"readout": names.strategy, "backbone": f"--backbone {names.strategy}-vit:small"}
    checks = [f"\n  regplug check {checked[kind]}" for kind in kinds if kind in checked]
    modules = ", ".join(str(path / names.package / f"{kind}.py") for kind in kinds)
    say(
        f"\nnext:\n  pip install -e {shlex.quote(f'{path}[test]')}{''.join(checks)}\n"
        f"  pytest {shlex.quote(str(path))}\n\nyours to change: {modules}"
    )
