"""The ``doctor`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from regplug.commands.printing import EXIT_FAILED, print_columns, print_json, progress, say
from regplug.commands.shared_options import json_option

if TYPE_CHECKING:
    from regplug.commands.doctor.plugin import Examination
    from regplug.commands.doctor.run import Diagnosis

LONGEST_LIMIT = 3600  # seconds; timers take no number without end
HEADS = ("plugin", "version", "protocol", "status", "import", "registered")


def _refuse_nan(context: click.Context, option: click.Parameter, seconds: float) -> float:
    if math.isnan(seconds):  # it is neither below nor above a range's ends
        raise click.BadParameter(f"expected a number of seconds up to {LONGEST_LIMIT}, got nan.", context, option)
    return seconds


@click.command("doctor")
@click.option(
    "--time-limit",
    type=click.FloatRange(0, LONGEST_LIMIT, min_open=True),
    callback=_refuse_nan,
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="For the import of one plugin; the modules that its entries name get 12 times as long.",
)
@json_option
def doctor_command(time_limit: float, as_json: bool) -> None:
    """Find what is wrong with the installed plugins, and with what regplug stands on.

    Imports each plugin in a child process of its own, so that one that hangs, prints or crashes harms nobody, then the
    modules that its entries name. Exit code 1 where there is a problem; warnings are none.
    """
    from regplug.commands.doctor.run import diagnose

    with progress("examining") as step:
        diagnosis = diagnose(time_limit, step)
    if as_json:
        print_json("doctor", _as_dict(diagnosis))
    else:
        _print(diagnosis)
    if diagnosis.level == "problem":
        click.get_current_context().exit(EXIT_FAILED)


def _as_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    from regplug.commands.doctor.findings import SHOWN
    from regplug.commands.doctor.plugin import section_of

    return {
        "level": diagnosis.level,
        "plugins": [
            {
                "distribution": one.distribution,
                "version": one.version,
                "protocol": one.protocol,
                "status": one.status,
                "import_seconds": one.import_seconds,
                "registered": {
                    section_of(hook): {"count": len(names), "names": names[:SHOWN]}
                    for hook, names in one.registered.items()
                },
            }
            for one in diagnosis.plugins
        ],
        "findings": [asdict(finding) for finding in diagnosis.all_findings],
        "environment": [asdict(check) for check in diagnosis.environment],
    }


def _print(diagnosis: Diagnosis) -> None:
    rows = [
        (
            one.distribution,
            one.version,
            one.protocol or "?",
            one.status,
            "" if one.import_seconds is None else f"{1000 * one.import_seconds:.0f} ms",
            _format(one),
        )
        for one in diagnosis.plugins
    ]
    print_columns(HEADS, rows)
    say()
    for finding in diagnosis.all_findings:
        say(f"{finding.level}: {finding.message}")
    if diagnosis.all_findings:
        say()
    checks = [(check.name, check.level, check.found, check.message) for check in diagnosis.environment]
    print_columns(("environment", "status", "found", ""), checks)
    say(f"\n{_count(diagnosis.levels, 'problem')}, {_count(diagnosis.levels, 'warning')}")


def _format(one: Examination) -> str:
    from regplug.commands.doctor.child import WORDS

    counted = [(len(names), *WORDS[hook]) for hook, names in one.registered.items() if names]
    return ", ".join(f"{count:,} {word if count == 1 else words}" for count, word, words in counted)


def _count(levels: list[str], word: str) -> str:
    count = levels.count(word)
    return f"{count or 'no'} {word}{'' if count == 1 else 's'}"
