"""The ``check`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regplug.choices import (
    KeyValue,
    chosen_spec,
    complete_export_backend,
    complete_strategy,
    json_option,
    named_by_user,
    size_options,
)
from regplug.conformance.check import COMPILERS
from regplug.errors import ExportError
from regplug.printing import EXIT_FAILED, print_columns, print_json, progress, say

if TYPE_CHECKING:
    from regplug.conformance.check import CheckResult
    from regplug.conformance.subject import Subject


@click.command("check")
@click.argument("what", metavar="STRATEGY|MODULE:CLASS", shell_complete=complete_strategy)
@size_options
@click.option("--size", type=KeyValue(), multiple=True, help="A class's own word for a size: in_features=hidden_dim.")
@click.option(
    "--layout", type=KeyValue(), multiple=True, help="Where the registers sit; start=1, or the backbone's, by default."
)
@click.option("--film", metavar="MODULE:CLASS", help="The FiLM generator to pair with; regplug's own by default.")
@click.option("--film-option", type=KeyValue(), multiple=True, help="An option of --film; JSON, else text.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    shell_complete=complete_export_backend,
    help="An export backend to try; by default regplug's own and those of the readout's distribution. Repeatable.",
)
@click.option(
    "--compiler", type=click.Choice(COMPILERS), default="inductor", show_default=True, help="Of torch.compile."
)
@click.option(
    "--expect", multiple=True, metavar="CHECK=REASON", help="A check that is known to fail. Repeatable; a pass fails."
)
@json_option
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write the rows as JUnit XML, too.")
def check_command(
    what: str,
    expect: tuple[str, ...],
    as_json: bool,
    junit: Path | None,
    **choice: Any,
) -> None:
    """Prove that a readout does what every readout must, check by check.

    STRATEGY is a registered name; MODULE:CLASS is any class, in the working directory or installed. The sizes are R=4
    and D=24 where none are given. Exit code 1 if a check fails that is not expected to, or passes though it is.
    """
    if junit is not None:
        _check_place(junit)  # now, not after minutes of checking
        junit = junit.absolute()  # before a plugin is imported, which may change the working folder
    expected: dict[str, str] = {}
    for check, reason in map(_expectation, expect):
        if expected.setdefault(check, reason) != reason:
            raise click.UsageError(f"--expect: {check}: expected one reason, got two.")
    with progress(f"checking {what}") as step:
        step("building")
        subject = _subject(what, **choice)
        from regplug.conformance.run import check_subject

        results = check_subject(subject, expected, step)
    ok = all(result.ok for result in results)
    if as_json:
        rows = [{**asdict(result), "ok": result.ok} for result in results]
        used = {"layout": subject.layout.as_dict(), "backends": subject.backends, "compiler": subject.compiler}
        print_json("check", {"ok": ok, **subject.spec.as_dict(), **used, "checks": rows})
    else:
        cells = [(one.check, one.verdict, f"{one.seconds:.2f}", " ".join(one.detail.split())) for one in results]
        print_columns(("check", "verdict", "seconds", ""), cells)
        say(counted(results))
    if junit is not None:
        from regplug.conformance.junit import junit_xml
        from regplug.lone_files import write_files

        write_files({junit: junit_xml(results)}, force=True)
    if not ok:
        click.get_current_context().exit(EXIT_FAILED)


def counted(results: Sequence[CheckResult]) -> str:
    """How many rows have each verdict, and the time: ``24 passed, 1 failed in 31 s``."""
    verdicts = Counter(result.verdict for result in results)
    said = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    return f"{said} in {sum(result.seconds for result in results):.3g} s"


def _subject(
    what: str,
    *,
    num_registers: int | None,
    hidden_dim: int | None,
    backbone: str | None,
    options: Any,
    model_option: Any,
    size: Any,
    layout: Any,
    film: str | None,
    film_option: Any,
    backends: tuple[str, ...],
    compiler: str,
) -> Subject:
    from regplug.conformance.named import HIDDEN_DIM, NUM_REGISTERS, readout_named
    from regplug.conformance.run import subject_of
    from regplug.installed import default_registry
    from regplug.layout import TokenLayout
    from regplug.spec import specify

    if film_option and film is None:
        raise click.UsageError("--film-option: expected --film MODULE:CLASS beside it, got none.")
    if backbone is None:
        num_registers = NUM_REGISTERS if num_registers is None else num_registers
        hidden_dim = HIDDEN_DIM if hidden_dim is None else hidden_dim
    registry, strategy = readout_named(what, dict(size))
    if registry is default_registry():
        spec, sizes = chosen_spec(what, num_registers, hidden_dim, backbone, options, model_option)
    else:
        # of a strategy that fits any size, for the sizes alone: a backbone's options are of its default strategy
        any_spec, sizes = chosen_spec("regplug:mean", num_registers, hidden_dim, backbone, (), model_option)
        chosen = {"num_registers": any_spec.num_registers, "hidden_dim": any_spec.hidden_dim}
        spec = specify(registry.readout_entry(strategy), **chosen, options=dict(options))
    place = sizes.layout if sizes else None
    if layout:
        given = {"num_registers": spec.num_registers, "hidden_dim": spec.hidden_dim, **dict(layout)}
        place = TokenLayout.from_dict(given)
    return subject_of(
        spec,
        layout=place,
        film=named_by_user("--film", film) if film is not None else None,
        film_options=dict(film_option),
        backends=tuple(dict.fromkeys(backends)) or None,
        compiler=compiler,
        registry=registry,
    )


def _expectation(text: str) -> tuple[str, str]:
    check, equals, reason = text.partition("=")
    if not equals or not check:
        raise click.UsageError(f"--expect: expected CHECK=REASON, got {text!r}.")
    return check, reason


def _check_place(junit: Path) -> None:
    from regplug.lone_files import check_file_place

    if not (junit.name and junit.parent.is_dir() and os.access(junit.parent, os.W_OK | os.X_OK)):
        raise click.UsageError(f"--junit: expected a file in a folder that can be written into, got {str(junit)!r}.")
    try:
        check_file_place(junit, force=True)
    except ExportError as error:
        raise click.UsageError(f"--junit: {error}") from error
