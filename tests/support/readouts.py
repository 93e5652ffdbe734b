"""Sizes, and modules whose parameters are not the initial ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    import regplug

SIZES = {"num_registers": 4, "hidden_dim": 24}
M = TypeVar("M", bound=nn.Module)


def moved(module: M, scale: float = 1.0) -> M:
    """The module itself, its parameters moved from their values as training moves them: at first many change nothing.

    The values are those of torch's own generator: set its seed before.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn_like(parameter)
    return module


def trained(spec: regplug.ReadoutSpec, seed: int = 0) -> nn.Module:
    """The readout of a spec, its parameters not the initial ones, and the same in every run."""
    torch.manual_seed(seed)
    return moved(spec.build())
