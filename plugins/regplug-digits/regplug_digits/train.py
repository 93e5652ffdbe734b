"""Trains the classifier: ``python -m regplug_digits.train --readout NAME``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.nn import functional as F

import regplug

from .data import Digits, augment, load, plain_accuracies
from .model import DigitsViT
from .plugin import READOUT
from .weights import save_model

EPOCHS = 100
THREADS = 1  # the tensors are so small that a second thread gains little, and loses much on a busy machine
_BATCH = 64
_PEAK_RATE = 3e-3
_DECAY = 0.05


def build(readout: str, options: dict[str, Any] | None, seed: int) -> DigitsViT:
    """Make a classifier with initial weights from ``seed``."""
    torch.manual_seed(seed)
    return DigitsViT(readout, options)


def fit(
    model: DigitsViT,
    train: Digits,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    on_epoch: Callable[[float], None] = lambda loss: None,
) -> None:
    """Train ``model`` in place; the last epoch's weights are kept, and no other data is used.

    Args:
        model: The classifier; left in eval mode.
        train: The training data.
        epochs: How often to go through it, >= 1.
        seed: Fixes the order of the images and how they are turned and shifted.
        on_epoch: Called after each epoch with its mean loss.
    """
    generator = torch.Generator().manual_seed(seed)
    plain = [p for p in model.parameters() if p.dim() < 2 or getattr(p, "_no_weight_decay", False)]
    kept = {id(p) for p in plain}
    decayed = [p for p in model.parameters() if id(p) not in kept]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": _DECAY}, {"params": plain, "weight_decay": 0.0}])
    batches = -(-len(train) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=_PEAK_RATE, total_steps=epochs * batches, pct_start=0.15
    )
    model.train()
    for _ in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(train), generator=generator).split(_BATCH):
            logits = model(augment(train.images[chosen], generator))
            loss = F.cross_entropy(logits, train.labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        on_epoch(total / batches)
    model.eval()


@torch.no_grad()
def accuracy(model: DigitsViT, part: Digits) -> float:
    """Share of ``part`` that ``model`` classifies correctly, in percent."""
    right: float = (model(part.images).argmax(dim=1) == part.labels).double().mean().item()
    return 100 * right


def fit_with_bar(model: DigitsViT, train: Digits, *, title: str, epochs: int, seed: int) -> float:
    """Train with a progress bar on stderr, if that is a terminal.

    Returns:
        Seconds that training took.
    """
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("epoch {task.completed:.0f}/{task.total:.0f}, loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    started = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=epochs, loss=float("nan"))
        fit(model, train, epochs=epochs, seed=seed, on_epoch=lambda loss: bar.update(task, advance=1, loss=loss))
    return time.perf_counter() - started


def parse_options(pairs: Sequence[str]) -> dict[str, Any] | None:
    """Read ``key=value`` pairs; values are JSON, else strings. None when there are none.

    Raises:
        click.UsageError: A pair has no ``=``.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise click.UsageError(f"-O: expected key=value, got {pair!r}.")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options or None


@click.command()
@click.option("--readout", default=READOUT, show_default=True, help="A registered strategy.")
@click.option("-O", "pairs", metavar="KEY=VALUE", multiple=True, help="An option of the strategy; JSON, else a string.")
@click.option("--seed", default=0, show_default=True, help="Fixes initial weights, order and augmentation.")
@click.option("--epochs", default=EPOCHS, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", default=THREADS, show_default=True, type=click.IntRange(min=1), help="CPU threads of torch.")
@click.option("-o", "output", type=click.Path(dir_okay=False, path_type=Path), help="Write the weights to this file.")
def main(readout: str, pairs: tuple[str, ...], seed: int, epochs: int, threads: int, output: Path | None) -> None:
    """Train on four fifths of the digits and print the accuracy on the fifth that is held out."""
    if output is not None and not output.resolve().parent.is_dir():
        raise click.UsageError(f"-o: expected an existing folder, got {str(output.resolve().parent)!r}.")
    torch.set_num_threads(threads)
    try:
        model = build(readout, parse_options(pairs), seed)
    except regplug.RegplugError as error:
        raise click.UsageError(str(error)) from error
    train, test = load()
    seconds = fit_with_bar(model, train, title=readout, epochs=epochs, seed=seed)
    if output is not None:
        save_model(model, output)
    click.echo(
        f"{readout}: {accuracy(model, test):.1f} % of {len(test)} held-out images "
        f"(seed {seed}, {epochs} epochs, {seconds:.0f} s)"
    )
    baselines = ", ".join(f"{name} {percent:.1f} %" for name, percent in plain_accuracies().items())
    click.echo(f"for comparison, on the same split: {baselines}")


if __name__ == "__main__":
    main()
