"""The ``cache`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

import time
from typing import Any

import click

from regplug.commands.printing import print_columns, print_json, say
from regplug.commands.shared_options import json_option

HEADS = ("backend", "holds", "strategy", "R", "D", "settings", "torch", "kB", "last used")


@click.group("cache", invoke_without_command=True)
@json_option
@click.pass_context
def cache_command(context: click.Context, as_json: bool) -> None:
    """List the compiled programs in the cache.

    They hold no weights, so that exporting a retrained readout needs no compiler.
    """
    if context.invoked_subcommand is not None:
        return
    from regplug.backends.cache import cache_folder, entries

    found = entries()
    if as_json:
        listed = [
            {"file": one.path.name, "bytes": one.size, "last_used": one.last_used, "is": one.description}
            for one in found
        ]
        print_json("cache", {"folder": str(cache_folder()), "entries": listed})
        return
    if found:
        print_columns(HEADS, [_row(one.description, one.size, one.last_used) for one in found])
    total = sum(one.size for one in found)
    say(f"{len(found)} entries, {_kilobytes(total)} kB in {cache_folder()}")


@cache_command.command("prune")
@click.option(
    "--days", type=click.FloatRange(0), default=30, show_default=True, help="Keep entries used within so many days."
)
@json_option
def prune_command(days: float, as_json: bool) -> None:
    """Delete entries that were not used for some days, and damaged ones; `--days 0` deletes all."""
    from regplug.backends.cache import prune

    gone = prune(days)
    freed = sum(one.size for one in gone)
    if as_json:
        print_json("cache-prune", {"deleted": [one.path.name for one in gone], "bytes": freed})
    else:
        say(f"deleted {len(gone)} entries, {_kilobytes(freed)} kB")


def _row(description: Any, size: int, last_used: float) -> tuple[object, ...]:
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(last_used))
    if description is None:
        return ("damaged", *[""] * 6, _kilobytes(size), day)
    words = [description[word] for word in ("backend", "holds", "strategy", "num_registers", "hidden_dim")]
    settings = ", ".join(f"{key}={value}" for key, value in description["settings"].items())
    return (*words, settings, description["torch"], _kilobytes(size), day)


def _kilobytes(size: int) -> int:
    return -(-size // 1000)
