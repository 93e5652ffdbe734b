"""The ``audit`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from regplug.commands.effect.options import EffectOptions, effect_options
from regplug.commands.printing import EXIT_FAILED, print_columns, print_json, progress, say
from regplug.commands.shared_options import KeyValue, chosen_backbone, complete_backbone, json_option
from regplug.errors import NameLookupError, RegplugError
from regplug.registry.references import REFERENCE_PATTERN, import_named_by_user, load_reference

if TYPE_CHECKING:
    from regplug.commands.audit.network import Audit
    from regplug.registry.entries import BackboneEntry

MAX_REFUSALS = 4


@click.command("audit")
@click.argument("what", metavar="BACKBONE[:MODEL]|MODULE:CLASS", shell_complete=complete_backbone)
@click.option(
    "--num-registers", type=int, metavar="R", help="Number of registers to start from; default: the constructor's own."
)
@click.option("--hidden-dim", type=int, metavar="D", help="Token width to start from; default: the constructor's own.")
@click.option(
    "-O",
    "options",
    type=KeyValue(),
    multiple=True,
    help="An argument of the constructor: JSON, or else text. Repeatable.",
)
@click.option(
    "--size", type=KeyValue(), multiple=True, help="The constructor's own name for a size: dim=hidden_dim. Repeatable."
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="[NAME=]SHAPE[:DTYPE]|MODULE:FUNCTION",
    help="An argument of the forward, such as tokens=B,R+16,D or step=B:int64; found by trying by default. Repeatable.",
)
@click.option(
    "--expect",
    multiple=True,
    metavar="NAME=REASON",
    help="A FiLM input whose width need not follow, and why. Repeatable.",
)
@click.option("--allow-unknown", is_flag=True, help="Accept FiLM inputs of unknown width, and networks without any.")
@effect_options
@json_option
def audit_command(
    what: str,
    num_registers: int | None,
    hidden_dim: int | None,
    options: Any,
    size: Any,
    inputs: tuple[str, ...],
    expect: tuple[str, ...],
    allow_unknown: bool,
    as_json: bool,
    **of_effect: Any,
) -> None:
    """Find FiLM widths that do not follow a network's sizes.

    Such a width is hard-coded, and breaks when the number or the width of the registers changes. The command builds
    the network at its own sizes and at five others, and runs a forward pass of each on the meta device, which computes
    nothing and takes no memory. At each FiLM input it compares the width of the conditioning with the width that the
    layer takes. Exit code 1 if a width is wrong or unknown, if there is no FiLM input, or if --expect names one that
    follows.

    With --effect it runs the network on the CPU instead, on given or drawn inputs, and measures how much of the output
    depends on the conditioning. WHAT may then also be a function that returns a trained network. Exit code 1 only on
    findings of the kinds in --fail-on, or, with that option, if no FiLM site is found.
    """
    given = dict(options)
    sizes = {
        "num_registers": num_registers,
        "hidden_dim": hidden_dim,
        "compressed_dim": given.pop("compressed_dim", None),
    }
    expected = _expectations(expect)
    asked = EffectOptions(**of_effect)
    asked.check(widths_only={"--expect": expect, "--allow-unknown": allow_unknown})
    from regplug.commands.audit.inputs import parse_inputs

    if asked.effect:
        from regplug.commands.effect.from_command import run_effect

        shapes = parse_inputs(inputs, partial(import_named_by_user, "--input"))
        owner, build, own, _ = _target(what)
        if sizes["compressed_dim"] is not None:  # an option of the constructor as any other
            given["compressed_dim"] = sizes.pop("compressed_dim")
        run_effect(what, owner, build, sizes, given, dict(size), bool(own), shapes, asked, as_json)
        return
    from regplug.commands.audit.network import audit_network

    made = parse_inputs(inputs, partial(import_named_by_user, "--input"))
    with progress(f"auditing {what}") as step:
        step("building")
        owner, build, own, shape = _target(what)
        known = own | {word: size for word, size in sizes.items() if size is not None}
        found = audit_network(
            owner,
            build,
            known,
            given,
            words=dict(size),
            inputs=made,
            shape=shape,
            expect=expected,
            may_be_fixed=bool(own),
            step=step,
        )
    ok = found.passes(allow_unknown)
    if as_json:
        counts = {verdict: found.count(verdict) for verdict in ("follows", "wrong", "unknown")}
        print_json("audit", {"network": what, "ok": ok, "counts": counts, "summary": found.summary, **asdict(found)})
    else:
        _print(found)
    if not ok:
        click.get_current_context().exit(EXIT_FAILED)


def _expectations(texts: Sequence[str]) -> dict[str, str]:
    expected: dict[str, str] = {}
    for text in texts:
        name, equals, reason = text.partition("=")
        if not (name and equals and reason.strip()):
            raise click.UsageError(f"--expect: expected NAME=REASON, got {text!r}.")
        if expected.setdefault(name, reason) != reason:
            raise click.UsageError(f"--expect: {name}: expected one reason, got two.")
    return expected


def _target(what: str) -> tuple[str, Callable[..., Any], dict[str, Any], Sequence[int] | None]:
    """The network, for messages; its constructor, its known sizes, and the shape of its images."""
    try:
        entry, own = chosen_backbone(what)
    except NameLookupError:
        if not REFERENCE_PATTERN.fullmatch(what):
            raise
        return f"network {what}", import_named_by_user("audit", what), {}, None
    owner = f"backbone {entry.name!r}"
    build = load_reference(owner, entry.build)
    name = entry.full_name if what.startswith(entry.full_name) else entry.name
    model = what[len(name) + 1 :] or None
    sizes = {"num_registers": own.layout.num_registers, "hidden_dim": own.layout.hidden_dim}
    return owner, partial(build, model) if model else build, sizes, _image_shape(entry, model)


def _image_shape(entry: BackboneEntry, model: str | None) -> Sequence[int] | None:
    """``(C, H, W)`` if the backbone's plugin states it."""
    import torch

    from regplug.nn.backbone import ask_tokens, build_backbone

    try:
        with torch.device("meta"):
            return getattr(ask_tokens(entry, build_backbone(entry, model), False), "input_shape", None)
    except RegplugError:  # it has no tokens to read, or only normalized ones
        return None


def _print(found: Audit) -> None:
    from regplug.commands.audit.sizes import format_sizes
    from regplug.commands.audit.verdict import FOLLOWS
    from regplug.nn.pairing import WIDTH_WORDS

    say("sizes: " + "; ".join(map(format_sizes, found.sizes)))
    if found.findings:
        heads = ("FiLM input", "class", "from", "wanted", "given", "formula wanted", "formula given", "verdict")
        rows = [
            (
                one.module,
                one.generator,
                one.readout or "?",
                _format(one.wanted),
                _format(one.given),
                one.wanted_formula,
                one.given_formula,
                one.verdict + (" (expected)" if one.expected else ""),
            )
            for one in found.findings
        ]
        print_columns(heads, rows)
    else:
        words = ", ".join(WIDTH_WORDS)
        say(
            f"no FiLM input found: no module of a known family, no constructor that names one of {words}, and no "
            "conditioning vector that scales or shifts features"
        )
    if found.error:
        say(f"its forward ended early: {found.error}")
    alike: dict[str, list[str]] = {}  # a network of many blocks repeats one mistake
    for one in found.findings:
        if one.verdict != FOLLOWS:
            text = f"{one.verdict}: {one.reason}" + (f" (expected: {one.expected})" if one.expected else "")
            alike.setdefault(text, []).append(one.module)
    for text, modules in alike.items():
        say(modules[0] + (f" and {len(modules) - 1} more" if len(modules) > 1 else "") + f": {text}")
    for name in found.unused:
        known = {one.module for one in found.findings}
        reason = "it follows" if name in known else f"no FiLM input of this name; known: {', '.join(known) or 'none'}"
        say(f"--expect {name}: expected a FiLM input that does not follow, got none: {reason}")
    for word in found.fixed:
        say(f"{word}: kept its value: the constructor does not name it, or nothing else builds and runs")
    for note in found.notes:
        say(note)
    for refusal in found.refused[:MAX_REFUSALS]:
        say(f"does not run at {format_sizes(refusal.sizes)}: {refusal.error}")
    if len(found.refused) > MAX_REFUSALS:
        say(f"does not run at {len(found.refused) - MAX_REFUSALS} other sizes")
    say(found.summary)


def _format(widths: tuple[int | None, ...]) -> str:
    return " ".join("?" if width is None else str(width) for width in widths)
