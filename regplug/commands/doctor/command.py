"""The ``doctor`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from regplug.commands.printing import EXIT_FAILED, print_columns, print_json, progress, say
from regplug.commands.shared_options import json_option

if TYPE_CHECKING:
    from regplug.commands.doctor.plugin import PluginReport
    from regplug.commands.doctor.run import Report

MAX_TIME_LIMIT = 3600  # seconds; timers take no infinity
HEADS = ("plugin", "version", "protocol", "status", "import", "registered")


def _refuse_nan(context: click.Context, option: click.Parameter, seconds: float) -> float:
    if math.isnan(seconds):  # it is neither below nor above the limits of a range
        raise click.BadParameter(f"expected a number of seconds up to {MAX_TIME_LIMIT}, got nan.", context, option)
    return seconds


@click.command("doctor")
@click.option(
    "--time-limit",
    type=click.FloatRange(0, MAX_TIME_LIMIT, min_open=True),
    callback=_refuse_nan,
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="For the import of one plugin; the modules that its entries name get 12 times as long.",
)
@json_option
def doctor_command(time_limit: float, as_json: bool) -> None:
    """Find problems of installed plugins and tools.

    Imports each plugin in its own child process, so that one that hangs, prints or crashes does no harm, then the
    modules that its entries name. Exit code 1 if there is a problem; warnings do not count.
    """
    from regplug.commands.doctor.run import examine_all

    with progress("examining") as step:
        report = examine_all(time_limit, step)
    if as_json:
        print_json("doctor", _as_dict(report))
    else:
        _print(report)
    if report.level == "problem":
        click.get_current_context().exit(EXIT_FAILED)


def _as_dict(report: Report) -> dict[str, Any]:
    from regplug.commands.doctor.diagnostics import MAX_SHOWN
    from regplug.commands.doctor.plugin import section_of

    return {
        "level": report.level,
        "plugins": [
            {
                "distribution": one.distribution,
                "version": one.version,
                "protocol": one.protocol,
                "status": one.status,
                "import_seconds": one.import_seconds,
                "registered": {
                    section_of(hook): {"count": len(names), "names": names[:MAX_SHOWN]}
                    for hook, names in one.registered.items()
                },
            }
            for one in report.plugins
        ],
        "findings": [asdict(one) for one in report.all_diagnostics],
        "environment": [asdict(check) for check in report.environment],
    }


def _print(report: Report) -> None:
    rows = [
        (
            one.distribution,
            one.version,
            one.protocol or "?",
            one.status,
            "" if one.import_seconds is None else f"{1000 * one.import_seconds:.0f} ms",
            _format(one),
        )
        for one in report.plugins
    ]
    print_columns(HEADS, rows)
    say()
    for one in report.all_diagnostics:
        say(f"{one.level}: {one.message}")
    if report.all_diagnostics:
        say()
    checks = [(check.name, check.level, check.found, check.message) for check in report.environment]
    print_columns(("environment", "status", "found", ""), checks)
    say(f"\n{_count(report.levels, 'problem')}, {_count(report.levels, 'warning')}")


def _format(one: PluginReport) -> str:
    from regplug.commands.doctor.child import NOUNS

    counted = [(len(names), *NOUNS[hook]) for hook, names in one.registered.items() if names]
    return ", ".join(f"{count:,} {word if count == 1 else words}" for count, word, words in counted)


def _count(levels: list[str], word: str) -> str:
    count = levels.count(word)
    return f"{count or 'no'} {word}{'' if count == 1 else 's'}"
