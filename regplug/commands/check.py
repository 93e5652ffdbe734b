"""The ``check`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regplug.commands.printing import EXIT_FAILED, print_columns, print_json, progress, say
from regplug.commands.shared_options import (
    KeyValue,
    chosen_spec,
    complete_checkable,
    complete_export_backend,
    complete_film_generator,
    json_option,
    size_options,
)
from regplug.conformance.check import COMPILERS
from regplug.errors import ExportError
from regplug.registry.option_text import parse_sizes
from regplug.registry.references import import_named_by_user
from regplug.registry.tracebacks import show_traceback

if TYPE_CHECKING:
    from regplug.conformance.check import CheckResult
    from regplug.conformance.subject import Subject


@click.command("check")
@click.argument("what", metavar="STRATEGY|MODULE:CLASS|BACKBONE", required=False, shell_complete=complete_checkable)
@size_options
@click.option("--size", type=KeyValue(), multiple=True, help="A class's own name for a size: in_features=hidden_dim.")
@click.option(
    "--layout", type=KeyValue(), multiple=True, help="Where the registers sit; start=1, or the backbone's, by default."
)
@click.option(
    "--film-generator",
    metavar="NAME|MODULE:CLASS",
    shell_complete=complete_film_generator,
    help="The FiLM generator to pair with; kernel-film by default.",
)
@click.option("--film", type=KeyValue(), multiple=True, help="An option of the FiLM generator; JSON, else text.")
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
    "--input", "shape", metavar="C,H,W", help="A backbone's input without the batch; what it states by default."
)
@click.option(
    "--expect", multiple=True, metavar="CHECK=REASON", help="A check that is known to fail. Repeatable; a pass fails."
)
@json_option
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write the rows as JUnit XML, too.")
def check_command(
    what: str | None,
    shape: str | None,
    expect: tuple[str, ...],
    as_json: bool,
    junit: Path | None,
    **choice: Any,
) -> None:
    """Check that a readout or a backbone does what every one must.

    STRATEGY is a registered name; MODULE:CLASS is any class, in the working directory or installed. The sizes are R=4
    and D=24 where none are given. BACKBONE is NAME or NAME:MODEL (or --backbone, without STRATEGY): its model is
    built with random weights and -M options, and run about thirty times; its layout is compared with the positions
    where marks in its register parameters come out. Exit code 1 if a check fails unexpectedly, or passes though it is
    expected to fail.
    """
    if junit is not None:
        _check_junit_path(junit)  # now, not after minutes of checking
        junit = junit.absolute()  # before a plugin is imported, which may change the working folder
    expected: dict[str, str] = {}
    for check, reason in map(_expectation, expect):
        if expected.setdefault(check, reason) != reason:
            raise click.UsageError(f"--expect: {check}: expected one reason, got two.")
    input_shape = None if shape is None else parse_sizes(shape)
    if what is None and choice["backbone"] is None:
        raise click.UsageError("expected a strategy, MODULE:CLASS or a backbone, got none.")
    backbone = choice["backbone"] if what is None else _backbone_name(what)
    with progress(f"checking {what or backbone}") as step:
        step("building")
        if backbone is not None:
            results, used = _check_backbone(what, backbone, input_shape, expected, step, **choice)
        elif input_shape is not None:
            raise click.UsageError("--input: expected it with a backbone, got a readout.")
        else:
            results, used = _check_readout(str(what), expected, step, **choice)
    for result in results:
        if result.error is not None:
            show_traceback(result.error)
    ok = all(result.ok for result in results)
    if as_json:
        print_json("check", {"ok": ok, **used, "checks": [_as_dict(result) for result in results]})
    else:
        cells = [(one.check, one.verdict, f"{one.seconds:.2f}", " ".join(one.detail.split())) for one in results]
        print_columns(("check", "verdict", "seconds", ""), cells)
        say(_summary(results))
    if junit is not None:
        from regplug.conformance.junit import junit_xml
        from regplug.format.single_file import write_files

        write_files({junit: junit_xml(results)}, force=True)
    if not ok:
        click.get_current_context().exit(EXIT_FAILED)


def _as_dict(result: CheckResult) -> dict[str, Any]:
    return {
        "readout": result.readout,
        "check": result.check,
        "verdict": result.verdict,
        "seconds": result.seconds,
        "detail": result.detail,
        "ok": result.ok,
    }


def _summary(results: Sequence[CheckResult]) -> str:
    """How many rows have each verdict, and the time: ``24 passed, 1 failed in 31 s``."""
    verdicts = Counter(result.verdict for result in results)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    return f"{counts} in {sum(result.seconds for result in results):.3g} s"


def _backbone_name(what: str) -> str | None:
    """``what``, if it names a backbone and no strategy: a word that names both means the strategy."""
    from regplug.errors import NameLookupError
    from regplug.nn.backbone import named_backbone
    from regplug.registry.default import default_registry

    try:
        default_registry().readout_entry(what)
    except NameLookupError:
        try:
            named_backbone(what)
        except NameLookupError:
            return None
        return what
    return None


def _check_backbone(
    what: str | None,
    name: str,
    input_shape: tuple[int, ...] | None,
    expected: dict[str, str],
    step: Callable[[str], None],
    *,
    backbone: str | None,
    model_option: Any,
    compiler: str,
    **of_readouts: Any,
) -> tuple[list[CheckResult], dict[str, Any]]:
    """The results of a backbone, and what was checked."""
    for word, given in (*of_readouts.items(), ("backbone", backbone if what is not None else None)):
        if given not in (None, ()):
            option = {"options": "-O", "backends": "--backend"}.get(word, f"--{word.replace('_', '-')}")
            raise click.UsageError(f"{option}: expected it with a readout, got the backbone {name}; -M is for models.")
    from regplug.conformance.backbone_run import check_backbone_subject
    from regplug.conformance.backbone_subject import backbone_subject_of

    subject = backbone_subject_of(name, options=dict(model_option), input_shape=input_shape, progress=step)
    results = check_backbone_subject(subject, expected, step)
    return results, {
        "backbone": subject.entry.full_name,
        "model": subject.model,
        "options": dict(subject.options),
        "layout": subject.layout.as_dict(),
    }


def _check_readout(
    what: str, expected: dict[str, str], step: Callable[[str], None], **choice: Any
) -> tuple[list[CheckResult], dict[str, Any]]:
    """The results of a readout, and what it was checked with."""
    from regplug.conformance.run import check_subject

    subject = _subject(what, **choice)
    used = {"layout": subject.layout.as_dict(), "backends": subject.backends, "compiler": subject.compiler}
    return check_subject(subject, expected, step), {**subject.spec.as_dict(), **used}


def _subject(
    what: str,
    *,
    num_registers: int | str | None,
    hidden_dim: int | None,
    backbone: str | None,
    options: Any,
    model_option: Any,
    size: Any,
    layout: Any,
    film_generator: str | None,
    film: Any,
    backends: tuple[str, ...],
    compiler: str,
) -> Subject:
    from regplug.conformance.lookup import HIDDEN_DIM, NUM_REGISTERS, readout_named
    from regplug.conformance.run import subject_of
    from regplug.registry.default import default_registry
    from regplug.registry.layout import TokenLayout
    from regplug.registry.spec import specify

    if backbone is None:
        num_registers = NUM_REGISTERS if num_registers is None else num_registers
        hidden_dim = HIDDEN_DIM if hidden_dim is None else hidden_dim
    registry, strategy = readout_named(what, dict(size))
    if registry is default_registry():
        spec, sizes = chosen_spec(what, num_registers, hidden_dim, backbone, options, model_option)
    else:
        # for the sizes alone, of a strategy that takes any size: a backbone's options are for its default strategy
        any_spec, sizes = chosen_spec("regplug:mean", num_registers, hidden_dim, backbone, (), model_option)
        entry = registry.readout_entry(strategy)
        spec = specify(entry, any_spec.num_registers, any_spec.hidden_dim, dict(options))
    token_layout = sizes.layout if sizes else None
    if layout:
        given = {"num_registers": spec.num_registers, "hidden_dim": spec.hidden_dim, **dict(layout)}
        token_layout = TokenLayout.from_dict(given)
    return subject_of(
        spec,
        layout=token_layout,
        film=None if film_generator is None else _generator(film_generator),
        film_options=dict(film),
        backends=tuple(dict.fromkeys(backends)) or None,
        compiler=compiler,
        registry=registry,
    )


def _expectation(text: str) -> tuple[str, str]:
    check, equals, reason = text.partition("=")
    if not equals or not check:
        raise click.UsageError(f"--expect: expected CHECK=REASON, got {text!r}.")
    return check, reason


def _check_junit_path(junit: Path) -> None:
    from regplug.format.single_file import check_file_place

    if not (junit.name and junit.parent.is_dir() and os.access(junit.parent, os.W_OK | os.X_OK)):
        raise click.UsageError(f"--junit: expected a file in a folder that can be written into, got {str(junit)!r}.")
    try:
        check_file_place(junit, force=True)
    except ExportError as error:
        raise click.UsageError(f"--junit: {error}") from error


def _generator(text: str) -> Any:
    """What ``--film-generator`` names: a registered generator's name, else a class."""
    from regplug.nn.pairing import named_film

    return text if named_film(text) is not None else import_named_by_user("--film-generator", text)
