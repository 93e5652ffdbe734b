"""The ``verify`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from regplug.commands.printing import EXIT_FAILED, print_columns, print_json, progress, say, say_needs
from regplug.commands.shared_options import digest_option, follow_links_option, json_option
from regplug.errors import BundleError, NameLookupError, shorten
from regplug.registry.tracebacks import show_traceback

if TYPE_CHECKING:
    from regplug.bundle.verify import VerifiedCase


@click.command("verify")
@click.argument("bundle", type=click.Path())
@click.option(
    "--programs",
    is_flag=True,
    help="Run every program too, which is code from the bundle's author, and compile the installed class.",
)
@digest_option
@click.option("--public-key", type=click.Path(), metavar="FILE", help="Accept only a bundle that this key signed.")
@click.option(
    "--signature", type=click.Path(), metavar="FILE", help="The signature for --public-key. Default: BUNDLE.sig."
)
@follow_links_option
@json_option
def verify_command(
    bundle: str,
    programs: bool,
    digest: str | None,
    public_key: str | None,
    signature: str | None,
    follow_links: bool,
    as_json: bool,
) -> None:
    """Check a bundle's files, digests and outputs.

    The installed class must give the outputs of the golden cases. With --public-key, the signature is checked first.
    Without --programs, no code from the bundle runs. With it, every program runs on every case, and so does the
    installed class compiled by torch.compile, which needs a C++ compiler and up to half a minute.
    """
    from regplug.bundle.verify import verify

    try:
        with progress("verify") as step:
            found = verify(
                bundle,
                programs=programs,
                digest=digest,
                public_key=public_key,
                signature=signature,
                follow_links=follow_links,
                progress=step,
            )
    except NameLookupError as error:  # a name in the bundle, not one that the user gave
        raise BundleError(f"bundle {bundle}: {error}") from error
    for check in found.checks:
        if check.exception is not None:
            show_traceback(check.exception)
    if as_json:
        # JSON has no NaN and no infinity
        checks = [{**c.as_dict(), "error": _finite(c.error), "ok": c.ok} for c in found.checks]
        values = {"bundle": bundle, "digest": found.digest, "ok": found.ok, "checks": checks}
        print_json("verify", {**values, "passed_over": found.passed_over})
    else:
        cases = dict.fromkeys(c.case for c in found.checks)
        programs_run = dict.fromkeys(c.program for c in found.checks)
        cells = {(c.case, c.program): _outcome(c) for c in found.checks}
        tolerances = {c.case: c.tolerance for c in found.checks}
        rows = [
            (case, _number(tolerances[case]), *(cells.get((case, program), "") for program in programs_run))
            for case in cases
        ]
        print_columns(("largest error", "tolerance", *programs_run), rows)
        for check in found.checks:
            if check.detail:
                say(check.detail)
        if found.passed_over:
            say(f"not in the manifest, not opened: {shorten(found.passed_over)}")
        if programs:
            say_needs(found.manifest)
        say(f"digest {found.digest}")
    if not found.ok:
        click.get_current_context().exit(EXIT_FAILED)


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _outcome(check: VerifiedCase) -> str:
    if check.error is None:
        return check.verdict
    return _number(check.error) if check.ok else f"{_number(check.error)} {check.verdict}"
