"""The options of ``regplug audit --effect``. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from regplug.commands.effect.findings import ANY, INFO_KINDS, KINDS

FAILING = [ANY, *(kind for kind in KINDS if kind not in INFO_KINDS)]
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class EffectOptions:
    """The options of ``--effect``, as given.

    Args:
        effect: Whether ``--effect`` is given.
        weights: A file of weights.
        inputs_file: A file of inputs.
        batch: The number of samples to draw.
        fail_on: Kinds of findings on which to fail.
    """

    effect: bool
    weights: Path | None
    inputs_file: Path | None
    batch: int | None
    fail_on: tuple[str, ...]

    def check(self, widths_only: Mapping[str, object]) -> None:
        """Refuse options of the other mode.

        Args:
            widths_only: Options that belong to the audit of widths, each with its value.

        Raises:
            click.UsageError: One is given.
        """
        own = {
            "--weights": self.weights,
            "--inputs": self.inputs_file,
            "--batch": self.batch,
            "--fail-on": self.fail_on,
        }
        wrong = widths_only if self.effect else own
        given = next((name for name, value in wrong.items() if value), None)
        if given is not None:
            mode = "without --effect" if self.effect else "with --effect"
            raise click.UsageError(f"{given}: expected {mode} only, got it {'with' if self.effect else 'without'}.")


def effect_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--effect`` and its options; the command gets them as keywords of ``EffectOptions``."""
    for decorate in (
        click.option(
            "--fail-on",
            multiple=True,
            type=click.Choice(FAILING),
            metavar="KIND",
            help="With --effect: exit code 1 if there is a finding of this kind; any: one that is sure. Repeatable.",
        ),
        click.option("--batch", type=int, metavar="B", help="With --effect: samples to draw; 16 by default."),
        click.option(
            "--inputs",
            "inputs_file",
            type=FILE,
            help="With --effect: a batch of inputs by the forward's names, .npz or .safetensors; drawn by default.",
        ),
        click.option("--weights", type=FILE, help="With --effect: the network's weights, .safetensors."),
        click.option(
            "--effect", is_flag=True, help="Run the network, and measure what its conditioning does to the output."
        ),
    ):
        command = decorate(command)
    return command
