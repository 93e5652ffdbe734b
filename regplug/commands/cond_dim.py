"""The ``cond-dim`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

from typing import Any

import click

from regplug.commands.part_option import chosen_join, part_option
from regplug.commands.printing import print_columns, print_json, say
from regplug.commands.shared_options import (
    chosen_backbone,
    chosen_sizes,
    complete_strategy,
    json_option,
    size_options,
)

PART_COLUMNS = ("part", "reads", "strategy", "cond_dim")


@click.command("cond-dim")
@click.argument("strategy", required=False, shell_complete=complete_strategy)
@size_options
@part_option
@json_option
def cond_dim_command(
    strategy: str | None,
    num_registers: int | str | None,
    hidden_dim: int | None,
    backbone: str | None,
    options: Any,
    model_option: Any,
    parts: Any,
    as_json: bool,
) -> None:
    """Print the width of the conditioning vector.

    With --backbone, for each FiLM site; of a join, with the width of each part. Allocates no weights. Imports torch
    only if the width must be measured, because the strategy does not state it; the built-in strategies do.
    """
    from dataclasses import asdict

    from regplug.nn.readouts.join_parts import parts_of
    from regplug.registry.default import default_registry
    from regplug.registry.spec import specify_unmeasured

    if parts:
        choice = chosen_join(parts, strategy, backbone, options)
        measured = chosen_backbone(str(backbone), model_option)[1]
        spec, film_sites = choice.resolve(measured.layout), measured.film_sites
    else:
        chosen, given, sizes = chosen_sizes(strategy, num_registers, hidden_dim, backbone, options, model_option)
        spec = specify_unmeasured(default_registry().readout_entry(chosen[0]), *chosen[1:], given)
        film_sites = sizes.film_sites if sizes else ()
    sites = [{**asdict(site), "cond_dim": spec.cond_dim} for site in film_sites]
    lines = [(one.part.name, one.reads, one.strategy, one.width) for one in parts_of(spec) or ()]
    if as_json:
        named = [dict(zip(PART_COLUMNS, line, strict=True)) for line in lines]
        print_json("cond-dim", {**spec.as_dict(), "film_sites": sites, **({"parts": named} if lines else {})})
    elif sites and not lines:
        print_columns(("site", "features", "layers", "cond_dim"), [tuple(site.values()) for site in sites])
    elif lines:
        print_columns(PART_COLUMNS, [*lines, ("sum", "", "", spec.cond_dim)])
    else:
        say(spec.cond_dim)
