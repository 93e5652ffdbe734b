"""The ``cache`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

import time
from typing import Any

import click

from regplug.commands.printing import print_columns, print_json, say
from regplug.commands.shared_options import json_option

TOKEN_HEADS = ("tokens of", "data", "samples", "R", "D", "state", "kB", "last used")
HEADS = ("backend", "holds", "strategy", "R", "D", "settings", "torch", "kB", "last used")


@click.group("cache", invoke_without_command=True)
@json_option
@click.pass_context
def cache_command(context: click.Context, as_json: bool) -> None:
    """List the compiled programs in the cache, and the tokens and scores of rank.

    Programs hold no weights, so that exporting a retrained readout needs no compiler.
    """
    if context.invoked_subcommand is not None:
        return
    from regplug.backends.cache import cache_folder, entries
    from regplug.commands.rank.reading import token_cache
    from regplug.commands.rank.score_files import score_files

    found = entries()
    tokens = token_cache.entries()
    scores = [path.stat().st_size for path in score_files()]
    if as_json:
        listed = [
            {"file": one.path.name, "bytes": one.size, "last_used": one.last_used, "is": one.description}
            for one in found
        ]
        kept = [
            {
                "folder": one.path.name,
                "bytes": one.size,
                "last_used": one.last_used,
                "whole": one.whole,
                "of": one.about,
            }
            for one in tokens
        ]
        print_json("cache", {"folder": str(cache_folder()), "entries": listed, "tokens": kept, "scores": len(scores)})
        return
    if found:
        print_columns(HEADS, [_row(one.description, one.size, one.last_used) for one in found])
    if tokens:
        print_columns(TOKEN_HEADS, [_token_row(one.about, one.whole, one.size, one.last_used) for one in tokens])
    if scores:
        say(f"scores of {len(scores)} trainings, {_kilobytes(sum(scores))} kB")
    total = sum(one.size for one in found) + sum(one.size for one in tokens) + sum(scores)
    say(f"{len(found) + len(tokens) + len(scores)} entries, {_kilobytes(total)} kB in {cache_folder()}")


@cache_command.command("prune")
@click.option(
    "--days", type=click.FloatRange(0), default=30, show_default=True, help="Keep entries used within so many days."
)
@json_option
def prune_command(days: float, as_json: bool) -> None:
    """Delete entries that were not used for some days, and damaged ones; `--days 0` deletes all."""
    from regplug.backends.cache import prune
    from regplug.commands.rank.reading import token_cache
    from regplug.commands.rank.score_files import prune_scores

    gone = [(one.path.name, one.size) for one in prune(days)]
    gone += [(one.path.name, one.size) for one in token_cache.prune(days)]
    gone += prune_scores(days)
    freed = sum(size for _, size in gone)
    if as_json:
        print_json("cache-prune", {"deleted": [name for name, _ in gone], "bytes": freed})
    else:
        say(f"deleted {len(gone)} entries, {_kilobytes(freed)} kB")


def _token_row(about: Any, is_whole: bool, size: int, last_used: float) -> tuple[object, ...]:
    day = _day(last_used)
    if about is None:
        return ("damaged", *[""] * 5, _kilobytes(size), day)
    model = ":".join(str(about[word]) for word in ("backbone", "model") if about.get(word)) or "a file of tokens"
    words = [about.get(word, "") for word in ("data", "samples", "num_registers", "hidden_dim")]
    return (model, *words, "complete" if is_whole else "interrupted", _kilobytes(size), day)


def _row(description: Any, size: int, last_used: float) -> tuple[object, ...]:
    day = _day(last_used)
    if description is None:
        return ("damaged", *[""] * 6, _kilobytes(size), day)
    words = [description[word] for word in ("backend", "holds", "strategy", "num_registers", "hidden_dim")]
    settings = ", ".join(f"{key}={value}" for key, value in description["settings"].items())
    return (*words, settings, description["torch"], _kilobytes(size), day)


def _day(last_used: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(last_used))


def _kilobytes(size: int) -> int:
    return -(-size // 1000)
