"""A join of registers and patches, trained twice: the second time one of its parts has another strategy.

Nothing else is changed: the width of the FiLM generators follows. Each trained join is exported, and runs in C++
without libtorch on the held-out digits. Prints one table.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from demo import BUILD, HERE, TOOLS, build, console, largest_error, run
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

import regplug
from regplug_digits.data import Digits, load
from regplug_digits.model import DigitsViT
from regplug_digits.train import fit_with_bar

EPOCHS = 15
JOIN = regplug.join(registers=("compress-concat", {"compressed_dim": 24}), patches="mean")
JOINS = {"compress-concat": JOIN, "pool": JOIN.swap(registers="pool")}


@dataclass(frozen=True)
class Outcome:
    """A trained join: its network, and what was right and how far it was off."""

    model: DigitsViT
    in_python: float
    in_cpp: float
    error: float


def accuracy(model: DigitsViT, test: Digits, conditioning: torch.Tensor | None = None) -> float:
    """Share of ``test`` that is classified correctly, in percent, with this conditioning vector in the last block."""
    with torch.inference_mode():
        return 100 * (model(test.images, conditioning).argmax(-1) == test.labels).double().mean().item()


def trained(title: str, join: regplug.Join, train: Digits) -> DigitsViT:
    """The classifier with this join, from a fixed seed."""
    torch.manual_seed(0)
    model = DigitsViT(join)
    fit_with_bar(model, train, title=title, epochs=EPOCHS, seed=0)
    return model


def check(title: str, model: DigitsViT, test: Digits) -> Outcome:
    """Export the last block's readout, run it in C++, and go on in the network from its conditioning vector."""
    readout, folder = model.blocks[-1].readout, BUILD / f"join-{title}"
    with console.status(f"exporting {title}"):
        done = regplug.export(
            model.spec, readout, folder, backends=["aotinductor"], layout=model.read_layout, force=True
        )
    print(f"\nexported the trained join: {folder}, digest {done.digest}", flush=True)
    given, made = BUILD / "tokens.safetensors", BUILD / "out.safetensors"
    with torch.inference_mode():
        tokens = model.last_tokens(test.images)
        truth = regplug.load(folder).double()(tokens.double())
    save_file({regplug.load(folder, program="aotinductor").manifest.input.name: tokens.contiguous()}, given)
    run(BUILD / "cpp" / "regplug-run", folder, given, made)
    conditioning = load_file(made)["conditioning"]
    error = largest_error([conditioning], [truth])
    return Outcome(model, accuracy(model, test), accuracy(model, test, conditioning), error)


def described(join: regplug.Join, model: DigitsViT) -> str:
    """The parts with their strategies and widths: ``registers pool 48 + patches mean 48``."""
    parts = model.blocks[-1].readout.parts
    return " + ".join(f"{name} {strategy} {parts[name].readout.out_dim}" for name, _, strategy, _ in join.parts)


def words(join: regplug.Join) -> list[str]:
    """The join as the command line takes it."""
    return [
        f"--part={name}={','.join([str(strategy), *(f'{key}={value}' for key, value in options.items())])}"
        for name, _, strategy, options in join.parts
    ]


def main() -> None:
    """Do it all, and print one table."""
    torch.set_num_threads(1)
    BUILD.mkdir(parents=True, exist_ok=True)
    train, test = load()
    for join in JOINS.values():
        run(TOOLS / "regplug", "cond-dim", "--backbone", "digits-vit", *words(join))
    build(HERE, BUILD / "cpp")
    outcomes = {name: check(name, trained(name, join, train), test) for name, join in JOINS.items()}
    table = Table(title=f"\n{len(test)} held-out digits after {EPOCHS} epochs; C++ without libtorch")
    table.add_column("join: strategy and width of each part")
    for column in ("cond_dim", "FiLM input", "accuracy, Python", "accuracy, C++", "error"):
        table.add_column(column, justify="right")
    for name, one in outcomes.items():
        table.add_row(
            described(JOINS[name], one.model),
            str(one.model.cond_dim),
            str(one.model.blocks[-1].film.mlp[0].in_features),
            f"{one.in_python:.2f} %",
            f"{one.in_cpp:.2f} %",
            f"{one.error:.1e}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    worst = max(one.error for one in outcomes.values())
    if worst > 1e-4:
        sys.exit(f"demo: expected errors below 1e-4, got {worst:.1e}")


if __name__ == "__main__":
    main()
