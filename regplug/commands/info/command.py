"""The ``info`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

from typing import Any

import click

from regplug.commands.printing import print_columns, print_json, say
from regplug.commands.shared_options import (
    complete_strategy,
    digest_option,
    follow_links_option,
    json_option,
    size_options,
)
from regplug.errors import escape
from regplug.registry.option_text import read_value


@click.command("info")
@click.argument("what", metavar="STRATEGY|BACKBONE[:MODEL]|BUNDLE|WEIGHTS", shell_complete=complete_strategy)
@size_options
@digest_option
@follow_links_option
@json_option
def info_command(what: str, digest: str | None, follow_links: bool, as_json: bool, **choice: Any) -> None:
    """Describe a strategy, a backbone, a bundle or a weights file.

    Runs no code from a bundle.
    """
    import json

    from regplug.commands.info.describe import describe
    from regplug.format.strict_json import to_ascii

    values = describe(what, digest=digest, follow_links=follow_links, **choice)
    if digest is not None and "bundle" not in values:
        raise click.UsageError(f"--digest: expected a bundle, got {what!r}, which is none.")
    if as_json:
        print_json("info", values)
        return
    # text from a file may hold terminal escapes
    show = to_ascii if "bundle" in values or "weights" in values else _visible_lines
    for key, value in json.loads(json.dumps(values)).items():  # prints tuples as lists, as in JSON
        if isinstance(value, list) and _is_table(value):
            say(f"{key}:")
            print_columns([*map(show, value[0])], [[show(_cell(cell)) for cell in row.values()] for row in value])
        else:
            text = "any" if key == "num_registers" and value is None else _format(value)
            say(f"{key}: {text if key in ('bundle', 'weights') else show(text)}")


def _visible_lines(text: str) -> str:
    return "\n".join(map(escape, text.split("\n")))


def _is_table(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(row, dict) and [*row] == [*value[0]] for row in value)


def _cell(value: Any) -> str:
    return "" if value is None else _as_option(value)


def _format(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_as_option(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_format, value)) or "none"
    return "none" if value is None else str(value)


def _as_option(value: Any) -> str:
    """A value in the form that ``-O key=value`` and ``--layout`` parse."""
    import json

    from regplug.registry.options import JSON_WORDS

    is_text = isinstance(value, str) and value not in JSON_WORDS and read_value(value) == value
    return value if is_text else json.dumps(value, ensure_ascii=False)
