"""Shows whether the registers matter: ``python -m regplug_digits.controls``.

Every control replaces the readouts' inputs and nothing else: patches, kernels and weights stay.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import regplug

from .data import Digits, load
from .model import DigitsViT
from .plugin import READOUT
from .train import EPOCHS, THREADS, accuracy, build, fit_with_bar
from .weights import load_shipped

# (block index, registers as read [B, R, D]) -> registers to read instead
Replacement = Callable[[int, Tensor], Tensor]
SCHEMA = "regplug-digits/controls/1"
COLUMNS = {
    "as_trained": "as trained",
    "other": "another image's",
    "other_named": "... and named as that image",
    "other_last": "another image's, last block",
    "mean": "mean",
    "zeros": "zeros",
    "blind": "retrained without",
}


@contextmanager
def replaced_registers(model: DigitsViT, replacement: Replacement, *, last_only: bool = False) -> Iterator[None]:
    """Replace the registers that the readouts get while the context is open.

    Args:
        model: The classifier.
        replacement: Called for each block with its index and the registers; returns those to read instead.
        last_only: Only in the last block.
    """

    def before(index: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (replacement(index, inputs[0]),)

    with ExitStack() as hooks:
        for index, block in enumerate(model.blocks):
            if index == len(model.blocks) - 1 or not last_only:
                readout: nn.Module = block.readout  # type: ignore[assignment]
                hooks.enter_context(readout.register_forward_pre_hook(partial(before, index)))
        yield


@torch.no_grad()
def registers_read(model: DigitsViT, images: Tensor) -> list[Tensor]:
    """The registers that each block's readout gets for ``images``, ``[B, R, D]`` per block."""
    seen: list[Tensor] = []

    def keep(index: int, registers: Tensor) -> Tensor:
        seen.append(registers)
        return registers

    with replaced_registers(model, keep):
        model(images)
    return seen


def other_images(count: int) -> Tensor:
    """For each image the index of another one: a fixed permutation without fixed points."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return others


def measure(model: DigitsViT, train: Digits, test: Digits) -> dict[str, float]:
    """Accuracy on ``test`` in percent, as trained and under every control.

    ``other_named`` is the share of images that, with another image's registers, are classified as that other image.
    One pair in ten shows the same digit, so about 10 is chance level, for ``other`` too.
    """
    own = registers_read(model, test.images)
    means = [registers.mean(dim=0) for registers in registers_read(model, train.images)]
    others = other_images(len(test))

    def swap(index: int, registers: Tensor) -> Tensor:
        return own[index][others]

    def mean(index: int, registers: Tensor) -> Tensor:
        return means[index].expand_as(registers)

    def zeros(index: int, registers: Tensor) -> Tensor:
        return torch.zeros_like(registers)

    figures = {"as_trained": accuracy(model, test)}
    with replaced_registers(model, swap):
        figures["other"] = accuracy(model, test)
        figures["other_named"] = accuracy(model, Digits(test.images, test.labels[others]))
    with replaced_registers(model, swap, last_only=True):
        figures["other_last"] = accuracy(model, test)
    with replaced_registers(model, mean):
        figures["mean"] = accuracy(model, test)
    with replaced_registers(model, zeros):
        figures["zeros"] = accuracy(model, test)
    return figures


def blind(model: DigitsViT) -> Replacement:
    """Registers that never saw the image: the learned tokens as the first block starts with them."""

    def replacement(index: int, registers: Tensor) -> Tensor:
        norm: nn.Module = model.blocks[index].norm  # type: ignore[assignment]
        return norm(model.registers).expand_as(registers)  # type: ignore[no-any-return]

    return replacement


@click.command()
@click.option(
    "--readout",
    "readouts",
    multiple=True,
    default=[READOUT, "pool", "digits-gate"],
    show_default=True,
    help="A registered strategy; may be repeated.",
)
@click.option("--blind", "with_blind", is_flag=True, help="Also retrain with registers that never see the image.")
@click.option("--retrain", is_flag=True, help=f"Train {READOUT} too, instead of loading the shipped weights.")
@click.option("--seed", default=0, show_default=True)
@click.option("--epochs", default=EPOCHS, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", default=THREADS, show_default=True, type=click.IntRange(min=1), help="CPU threads of torch.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    readouts: tuple[str, ...],
    with_blind: bool,
    retrain: bool,
    seed: int,
    epochs: int,
    threads: int,
    as_json: bool,
) -> None:
    """Print the accuracy with the registers as trained, and with replaced ones.

    The shipped weights are loaded for their strategy; every other strategy is trained first.
    """
    torch.set_num_threads(threads)
    train, test = load()
    results: dict[str, dict[str, float]] = {}
    for readout in readouts:
        try:
            model = build(readout, None, seed)
        except regplug.RegplugError as error:
            raise click.UsageError(str(error)) from error
        if readout == READOUT and not retrain:
            model = load_shipped()
        else:
            fit_with_bar(model, train, title=readout, epochs=epochs, seed=seed)
        results[readout] = measure(model, train, test)
        if with_blind:
            model = build(readout, None, seed)
            with replaced_registers(model, blind(model)):
                fit_with_bar(model, train, title=f"{readout}, blind", epochs=epochs, seed=seed)
                results[readout]["blind"] = accuracy(model, test)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "images": len(test), "accuracy": results}, indent=2))
    else:
        # a pipe has no width, and 80 columns would break the headings
        Console(width=None if sys.stdout.isatty() else 120).print(as_table(results))


def as_table(results: dict[str, dict[str, float]]) -> Table:
    """One row per strategy, one column per control."""
    columns = [column for column in COLUMNS if any(column in figures for figures in results.values())]
    table = Table(title="accuracy in percent on the held-out fifth, by the registers that are read")
    table.add_column("readout")
    for column in columns:
        table.add_column(COLUMNS[column], justify="right")
    for readout, figures in results.items():
        table.add_row(readout, *(f"{figures[column]:.1f}" for column in columns))
    return table


if __name__ == "__main__":
    main()
