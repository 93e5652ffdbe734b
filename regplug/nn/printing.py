"""What ``print(module)`` shows of a readout or a FiLM generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # or ``regplug.nn`` would import torch
    from torch import nn


def show_settings(module: nn.Module) -> str:
    """The sizes and options that a module keeps as attributes; a class sets ``extra_repr = show_settings``."""
    kept = {word: value for word, value in vars(module).items() if not word.startswith("_") and word != "training"}
    return ", ".join(f"{word}={value!r}" for word, value in kept.items() if not callable(value))
