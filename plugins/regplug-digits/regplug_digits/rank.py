"""Compares strategies by cross-validation: ``python -m regplug_digits.rank``.

The whole network is trained anew for every strategy, fold and seed, so no image that scores it was seen in training,
nor by whoever chose the strategy. The controls replace the registers that the readouts read, as in ``controls``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.model_selection import StratifiedKFold  # type: ignore[import-untyped]
from torch import Tensor

import regplug

from .controls import other_images, registers_read, replaced_registers
from .data import Digits, load
from .model import DigitsViT
from .plugin import READOUT
from .train import EPOCHS, build, fit

SCHEMA = "regplug-digits/rank/1"
STRATEGIES = (READOUT, "pool", "mean", "concat", "digits-gate")
CONTROLS = ("other", "mean", "zeros")
PIXELS = "logistic regression on pixels"


def all_digits() -> Digits:
    """Both parts of the data: here each image is held out once for every seed."""
    train, test = load()
    return Digits(torch.cat([train.images, test.images]), torch.cat([train.labels, test.labels]))


def folds_of(labels: Tensor, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and test images of each fold; every class is spread evenly."""
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return list(split.split(np.zeros(len(labels)), labels.numpy()))


@torch.no_grad()
def right(model: DigitsViT, part: Digits) -> Tensor:
    """1 for each image that is classified correctly, else 0."""
    return (model(part.images).argmax(dim=1) == part.labels).double()


def score(readout: str, seed: int, fold: int, folds: int, epochs: int) -> dict[str, Tensor]:
    """Train one network, and score it on the fold's test images: as it is, and under each control."""
    torch.set_num_threads(1)
    digits = all_digits()
    chosen = folds_of(digits.labels, folds, seed)[fold]
    train, test = (Digits(digits.images[places], digits.labels[places]) for places in chosen)
    if readout == PIXELS:
        model = LogisticRegression(max_iter=2000).fit(train.images.flatten(1), train.labels)
        found = model.predict(test.images.flatten(1)) == test.labels.numpy()
        return {"own": torch.tensor(found, dtype=torch.float64)}
    network = build(readout, None, seed * folds + fold)
    fit(network, train, epochs=epochs, seed=seed * folds + fold)
    own = registers_read(network, test.images)
    means = [registers.mean(dim=0) for registers in registers_read(network, train.images)]
    others = other_images(len(test))
    replacements = {
        "other": lambda index, registers: own[index][others],
        "mean": lambda index, registers: means[index].expand_as(registers),
        "zeros": lambda index, registers: torch.zeros_like(registers),
    }
    scores = {"own": right(network, test)}
    for name, replacement in replacements.items():
        with replaced_registers(network, replacement):
            scores[name] = right(network, test)
    return scores


@click.command()
@click.option("--readout", "readouts", multiple=True, default=STRATEGIES, show_default=True, help="May be repeated.")
@click.option("--seeds", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--folds", default=5, show_default=True, type=click.IntRange(min=2))
@click.option("--epochs", default=EPOCHS, show_default=True, type=click.IntRange(min=1))
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(min=1), help="Processes, one thread each.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(readouts: tuple[str, ...], seeds: int, folds: int, epochs: int, jobs: int, as_json: bool) -> None:
    """Print each strategy's accuracy on images that its networks have not seen, and what of it comes by registers."""
    names = [*dict.fromkeys(readouts), PIXELS]
    widths = [1 if name == PIXELS else build(name, None, 0).spec.cond_dim for name in names]
    labels = all_digits().labels
    tasks = [(name, seed, fold) for seed in range(seeds) for fold in range(folds) for name in names]
    scores = {name: torch.full((seeds, len(labels)), math.nan, dtype=torch.float64) for name in ("own", *CONTROLS)}
    kept = {name: {kind: one.clone() for kind, one in scores.items()} for name in names}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        answers = pool.map(partial(_score, folds=folds, epochs=epochs), tasks)
        bar = track(answers, total=len(tasks), console=Console(stderr=True), disable=not sys.stderr.isatty())
        for (name, seed, fold), found in zip(tasks, bar, strict=True):
            test = folds_of(labels, folds, seed)[fold][1]
            for kind, values in found.items():
                kept[name][kind][seed, test] = values
    own = torch.stack([kept[name]["own"] for name in names], 2)
    compared = regplug.compare_scores(own, names, widths, folds, candidates=len(names) - 1)
    figures = {name: {kind: one.mean().item() for kind, one in kept[name].items()} for name in names}
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "accuracy": figures, "pairs": [vars(one) for one in compared.pairs]}))
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(as_table(names, figures, compared))
        Console().print(compared.sentence(lambda difference: f"{100 * difference:.1f} points"))


def _score(task: tuple[str, int, int], folds: int, epochs: int) -> dict[str, Tensor]:
    name, seed, fold = task
    return score(name, seed, fold, folds, epochs)


def as_table(names: Sequence[str], figures: dict[str, dict[str, float]], compared: regplug.Comparison) -> Table:
    """One row per strategy, the best first."""
    best = max(range(compared.candidates), key=compared.means.__getitem__)
    table = Table(title="accuracy in percent on held-out images, by cross-validation")
    for head in ("readout", "accuracy", "to the best", "another image's registers", "mean registers", "zeros"):
        table.add_column(head, justify="left" if head == "readout" else "right")
    for place in sorted(range(len(names)), key=lambda place: -compared.means[place]):
        difference = "best" if place == best else in_points(compared.of(place, best))
        shares = [figures[names[place]][kind] for kind in CONTROLS]
        controls = ["-" if math.isnan(share) else f"{100 * share:.1f}" for share in shares]
        table.add_row(names[place], f"{100 * compared.means[place]:.1f}", difference, *controls)
    return table


def in_points(one: regplug.Difference) -> str:
    """A difference with its interval."""
    low, middle, high = (f"{100 * value:+.1f}" for value in (one.low, one.difference, one.high))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
