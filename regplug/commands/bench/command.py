"""The ``bench`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from regplug.commands.bench.page import write_page
from regplug.commands.bench.report import (
    DEVICES,
    DTYPES,
    HEADS,
    MODES,
    Plan,
    cells,
    environment,
    failures,
    mismatches,
    title,
)
from regplug.commands.html import place_of_page
from regplug.commands.printing import print_columns, print_json, progress, say
from regplug.commands.shared_options import (
    KeyValue,
    chosen_spec,
    complete_backbone,
    complete_strategy,
    film_generator_option,
    json_option,
    model_option,
)
from regplug.registry.references import import_named_by_user

AT_LEAST_ONE = click.IntRange(1)


@click.command("bench")
@click.argument("strategy", shell_complete=complete_strategy)
@click.option(
    "--against", metavar="MODULE:CLASS", help="The module to compare with; default: the readout itself in eager mode."
)
@click.option("--num-registers", type=int, metavar="R", multiple=True, help="Registers per sample. Repeatable.")
@click.option("--hidden-dim", type=int, metavar="D", help="Width of a register token.")
@click.option(
    "--backbone",
    metavar="NAME[:MODEL]",
    shell_complete=complete_backbone,
    help="Measure instead what share of this backbone's time the readout takes.",
)
@model_option
@film_generator_option
@click.option(
    "--film",
    type=KeyValue(),
    multiple=True,
    help="With --backbone: measure a FiLM generator too, with this option. Repeatable.",
)
@click.option(
    "-O", "options", type=KeyValue(), multiple=True, help="An option of the strategy: JSON, or else text. Repeatable."
)
@click.option("--batch", type=AT_LEAST_ONE, metavar="B", multiple=True, required=True, help="Samples. Repeatable.")
@click.option(
    "--tokens",
    type=AT_LEAST_ONE,
    metavar="N",
    default=197,
    show_default=True,
    help="Length of the token sequence that the register slice is taken from.",
)
@click.option("--mode", type=click.Choice(MODES), multiple=True, default=MODES, help="Repeatable; all by default.")
@click.option("--dtype", type=click.Choice(DTYPES), default=DTYPES[0], show_default=True)
@click.option("--device", type=click.Choice(DEVICES), default=DEVICES[0], show_default=True)
@click.option(
    "--threads", type=AT_LEAST_ONE, default=1, show_default=True, help="Threads of one operation, on the CPU."
)
@click.option(
    "--rounds", type=AT_LEAST_ONE, help="Pairs of timed blocks per row; default: as many as half a second allows."
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write an HTML page with charts of the ratios.",
)
@json_option
def bench_command(
    strategy: str,
    against: str | None,
    num_registers: tuple[int, ...],
    hidden_dim: int | None,
    backbone: str | None,
    model_option: Any,
    film_generator: str | None,
    film: Any,
    options: Any,
    batch: tuple[int, ...],
    tokens: int,
    mode: tuple[str, ...],
    dtype: str,
    device: str,
    threads: int,
    rounds: int | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Time a readout against another module, or with a backbone.

    Prints how many times faster it is, with quartiles. With --backbone: what the readout costs, in microseconds and as
    a share of backbone and readout together.
    """
    if backbone is not None:
        meaningless = ("against", "num_registers", "hidden_dim", "tokens", "mode", "dtype", "device", "html")
        _refuse_together("--backbone", *meaningless)
        choice = {"options": dict(options), "model_options": dict(model_option), "film": dict(film)}
        _bench_with_backbone(
            backbone,
            strategy,
            film_generator,
            **choice,
            batches=batch,
            threads=threads,
            rounds=rounds,
            as_json=as_json,
        )
        return
    _refuse_together("--num-registers", "model_option", "film_generator", "film")
    if not num_registers or hidden_dim is None:
        raise click.UsageError("sizes: expected --num-registers R and --hidden-dim D, or --backbone NAME, got less.")
    html = None if html is None else place_of_page(html)
    specs = [chosen_spec(strategy, r, hidden_dim, None, options)[0] for r in dict.fromkeys(num_registers)]
    from regplug.commands.bench.measure import bench, build_other

    plan = Plan(
        batches=tuple(dict.fromkeys(batch)),
        tokens=tokens,
        modes=tuple(dict.fromkeys(mode)),
        dtype=dtype,
        device=device,
        threads=threads,
        rounds=rounds,
    )
    with progress("bench") as step:
        other_class = None if against is None else import_named_by_user("--against", against)
        others = None if other_class is None else [build_other(f"--against {against}", other_class, s) for s in specs]
        report = bench(specs, others, plan, against, step)
    if html is not None:
        write_page(html, report)
    if as_json:
        print_json("bench", asdict(report))
        return
    say(f"{title(report)}: {environment(report)}")
    print_columns(HEADS, [cells(row) for row in report.rows])
    for line in (*failures(report), *mismatches(report)):
        say(line)


def _refuse_together(option: str, *others: str) -> None:
    """Refuse options that mean nothing together with another option."""
    source = click.get_current_context().get_parameter_source
    given = [word for word in others if source(word) is click.core.ParameterSource.COMMANDLINE]
    if given:
        raise click.UsageError(f"{option}: expected without --{given[0].replace('_', '-')}, got both.")


def _bench_with_backbone(
    backbone: str,
    strategy: str,
    film_generator: str | None,
    *,
    options: dict[str, Any],
    model_options: dict[str, Any],
    film: dict[str, Any],
    batches: tuple[int, ...],
    threads: int,
    rounds: int | None,
    as_json: bool,
) -> None:
    import torch

    from regplug.commands.bench.backbone_share import conditioning_cost
    from regplug.commands.bench.timing import describe_machine
    from regplug.nn.attach import attach
    from regplug.nn.tokens import input_shape

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with progress("bench") as step:
        step("building")
        attached = attach(
            backbone,
            strategy,
            strategy_options=options,
            film=film_generator,
            film_options=film or None,
            model_options=model_options,
        ).eval()
        shape = input_shape(attached.tokens)
        costs = []
        for size in dict.fromkeys(batches):
            step(f"B={size}")
            costs.append((size, conditioning_cost(attached, torch.randn(size, *shape), rounds=rounds)))
    machine = describe_machine("cpu")
    if as_json:
        measured = {"backbone": backbone, **attached.spec.as_dict(), "threads": threads, "machine": machine}
        print_json("bench-backbone", {**measured, "rows": [{"batch": size, **asdict(cost)} for size, cost in costs]})
        return
    say(
        f"{strategy} with {backbone}, inputs [B, {', '.join(map(str, shape))}]: {machine['cpu']}, "
        f"torch {machine['torch']}, threads {threads}, eager, us per call"
    )
    rows = [
        (size, f"{cost.whole.median:.0f}", f"{cost.conditioning.median:.1f}", f"{100 * cost.share:.3g} %")
        for size, cost in costs
    ]
    print_columns(("B", "whole", "readout and FiLM generator" if film_generator or film else "readout", "share"), rows)
