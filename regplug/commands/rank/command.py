"""The ``rank`` command. Importing this module imports neither torch nor a plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from regplug.commands.html import place_of_page
from regplug.commands.printing import EXIT_FAILED, print_columns, print_json, progress, say
from regplug.commands.rank.choices import DEFAULT_RUNTIMES, RUNTIMES, TASKS
from regplug.commands.shared_options import (
    KeyValue,
    complete_backbone,
    complete_film_generator,
    json_option,
    model_option,
)
from regplug.errors import SpecError
from regplug.registry.option_text import parse_option


class Strategies(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """``NAME,NAME,OPTION=VALUE``: names after commas; an option belongs to the name before it."""

    name = "strategies"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Each name with its options."""
        if isinstance(value, tuple):
            return value
        found: list[tuple[str, dict[str, Any]]] = []
        for word in value.split(","):
            if "=" not in word:
                found.append((word.strip(), {}))
                continue
            try:
                name, option = parse_option(word.strip())
            except SpecError as error:
                self.fail(str(error), param, ctx)
            if not found:
                self.fail(f"expected a strategy before its option, got {value!r}.", param, ctx)
            found[-1][1][name] = option
        if not all(name for name, _ in found):
            self.fail(f"expected names with commas between them, got {value!r}.", param, ctx)
        return tuple(found)


@click.command("rank")
@click.argument("backbone", metavar="[BACKBONE[:MODEL]]", required=False, shell_complete=complete_backbone)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FOLDER|FILE",
    help="A folder of images, or a .npz, .safetensors or Parquet file of images, tokens or registers.",
)
@click.option("--labels", metavar="COLUMN", help="The column or array with what is predicted.")
@click.option("--groups", metavar="COLUMN", help="Samples with one value here stay in one fold.")
@click.option("--task", type=click.Choice(TASKS), help="By default what the labels look like.")
@click.option(
    "--strategies",
    type=Strategies(),
    multiple=True,
    metavar="NAME,NAME,OPTION=VALUE,...",
    help="What to rank; an option belongs to the name before it. Repeatable; eight strategies by default.",
)
@model_option
@click.option("--weights", type=click.Path(exists=True, path_type=Path), metavar="FILE", help="The model's weights.")
@click.option(
    "--preprocess", metavar="MODULE:FUNCTION", help="From a Pillow image to the model's input; its own by default."
)
@click.option(
    "--film-generator",
    metavar="NAME|MODULE:CLASS",
    shell_complete=complete_film_generator,
    help="Predict through this FiLM generator over the mean of patches, instead of by a linear head.",
)
@click.option("--film", type=KeyValue(), multiple=True, help="An option of the FiLM generator. Repeatable.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Splits, and trainings in each.")
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Parts of a split.")
@click.option("--epochs", type=click.IntRange(1), default=30, show_default=True, help="Passes over training samples.")
@click.option("--margin", type=float, help="A difference that does not matter, such as 0.01 for a point of accuracy.")
@click.option(
    "--runtime",
    "runtimes",
    type=click.Choice(RUNTIMES),
    multiple=True,
    default=DEFAULT_RUNTIMES,
    show_default=True,
    help="Where calls are timed. Repeatable.",
)
@click.option("--jobs", type=click.IntRange(1), help="Processes; as many as cores by default.")
@click.option("--cache", type=click.Path(path_type=Path), metavar="DIR", help="Where tokens and scores are kept.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write an HTML page with pictures of the differences, and of score against cost.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the winner, if any, as a bundle.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@json_option
def rank_command(
    backbone: str | None,
    data: Path,
    labels: str | None,
    groups: str | None,
    task: str | None,
    strategies: Any,
    model_option: Any,
    weights: Path | None,
    preprocess: str | None,
    film_generator: str | None,
    film: Any,
    seeds: int,
    folds: int,
    epochs: int,
    margin: float | None,
    runtimes: tuple[str, ...],
    jobs: int | None,
    cache: Path | None,
    html: Path | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Find out which strategy reads your data best.

    Trains each strategy with a linear head on a backbone's registers, on the same folds, and prints their scores, the
    differences with intervals that hold together, controls and costs. "No difference" is a result. Run it again after
    an interrupt: it goes on where it ended.
    """
    if film and film_generator is None:
        raise click.UsageError("--film: expected --film-generator, whose option it is, got none.")
    html = None if html is None else place_of_page(html)
    if output is not None:
        from regplug.format.destination import absolute, check_place

        check_place(absolute(output), force)
    from regplug.commands.rank.api import rank
    from regplug.commands.rank.page import write_page
    from regplug.commands.rank.reading.tokens import read_samples
    from regplug.commands.rank.table import cells, failures, heads, origin

    with progress(f"ranking {backbone or data}") as step:
        samples = read_samples(
            backbone,
            data,
            labels=labels,
            groups=groups,
            task=task,
            folds=folds,
            model_options=dict(model_option),
            weights=weights,
            preprocess=preprocess,
            cache=cache,
            progress=step,
        )
        found = rank(
            samples,
            [one for some in strategies for one in some] or None,
            film=film_generator,
            film_options=dict(film),
            seeds=seeds,
            folds=folds,
            epochs=epochs,
            runtimes=runtimes,
            margin=margin,
            jobs=jobs,
            cache=cache,
            bundle=output,
            force=force,
            progress=step,
        )
    if html is not None:
        write_page(html, found)
    if as_json:
        print_json("rank", found.as_dict())
    else:
        say(f"{origin(found)}\n")
        print_columns(heads(found), [cells(found, number, row) for number, row in enumerate(found.rows, 1)])
        say("\n" + "\n".join([found.sentence, *failures(found), *found.notes]))
        if output is not None:
            say(f"wrote {output}" if found.winner else f"{output} was not written: there is no winner.")
    if not found.ok:
        click.get_current_context().exit(EXIT_FAILED)
