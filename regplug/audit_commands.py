"""The ``audit`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from regplug.choices import KeyValue, chosen_backbone, complete_backbone, json_option, named_by_user
from regplug.entries import REFERENCE_PATTERN, load_reference
from regplug.errors import NameLookupError
from regplug.printing import EXIT_FAILED, print_columns, print_json, progress, say

if TYPE_CHECKING:
    from regplug.audit import Audit


@click.command("audit")
@click.argument("what", metavar="BACKBONE[:MODEL]|MODULE:CLASS", shell_complete=complete_backbone)
@click.option("--num-registers", type=int, metavar="R", help="Registers to start from; else the constructor's default.")
@click.option("--hidden-dim", type=int, metavar="D", help="Token width to start from; else the constructor's default.")
@click.option("-O", "options", type=KeyValue(), multiple=True, help="An argument of the constructor; JSON, else text.")
@json_option
def audit_command(what: str, num_registers: int | None, hidden_dim: int | None, options: Any, as_json: bool) -> None:
    """Find FiLM widths that do not follow the sizes of a network.

    Builds it at its own sizes and at five others, on the meta device, where weights take no memory, and compares,
    generator by generator, the width that it wants with the one that its readout gives. Exit code 1 where a width
    does not follow; what it cannot tell is said, and is no failure.
    """
    given = dict(options)
    sizes = {
        "num_registers": num_registers,
        "hidden_dim": hidden_dim,
        "compressed_dim": given.pop("compressed_dim", None),
    }
    from regplug.audit import audit_network

    with progress(f"auditing {what}"):
        owner, build, own = _target(what)
        known = own | {word: size for word, size in sizes.items() if size is not None}
        found = audit_network(owner, build, known, given)
    if as_json:
        print_json("audit", {"network": what, "ok": found.ok, **asdict(found)})
    else:
        _print(found)
    if not found.ok:
        click.get_current_context().exit(EXIT_FAILED)


def _target(what: str) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    """What is audited, its constructor, and the sizes that it is known to have."""
    try:
        entry, own = chosen_backbone(what)
    except NameLookupError:
        if not REFERENCE_PATTERN.fullmatch(what):
            raise
        return f"network {what}", named_by_user("audit", what), {}
    owner = f"backbone {entry.name!r}"
    build = load_reference(owner, entry.build)
    spelling = entry.full_name if what.startswith(entry.full_name) else entry.name
    model = what[len(spelling) + 1 :]
    sizes = {"num_registers": own.layout.num_registers, "hidden_dim": own.layout.hidden_dim}
    return owner, partial(build, model) if model else build, sizes


def _print(found: Audit) -> None:
    from regplug.audit import PERTURBED, spell_sizes
    from regplug.pairing import WIDTH_WORDS

    say("sizes: " + "; ".join(map(spell_sizes, found.sizes)))
    if found.findings:
        heads = ("FiLM generator", "class", "readout", "wanted", "given", "formula wanted", "formula given", "verdict")
        rows = [
            (
                one.module,
                one.generator,
                one.readout or "?",
                _spell(one.wanted),
                _spell(one.given),
                one.wanted_formula,
                one.given_formula,
                one.verdict,
            )
            for one in found.findings
        ]
        print_columns(heads, rows)
    elif found.ok:
        words = ", ".join(WIDTH_WORDS)
        say(f"no FiLM generator found: none of a known family, no constructor that names one of {words}")
    for one in found.findings:
        if one.reason:
            say(f"{one.module}: {one.verdict}: {one.reason}")
    for word in found.fixed:
        say(f"{word}: kept its value, for its constructor takes no other or does not name it")
    others = len(found.sizes) - 1
    if others < PERTURBED:
        say(f"expected {PERTURBED} other sizes that build, got {others}")
    for refusal in found.refused:
        said = "wrong width" if refusal.wrong_width else "not built"
        say(f"{said} at {spell_sizes(refusal.sizes)}: {refusal.error}")


def _spell(widths: tuple[int | None, ...]) -> str:
    return " ".join("?" if width is None else str(width) for width in widths)
