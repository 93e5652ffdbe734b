"""Sizes, and modules whose weights are not the initial ones, the same in every run."""

from collections.abc import Callable

import torch
from torch import nn

SIZES = {"num_registers": 4, "hidden_dim": 24}
SIZE_ARGUMENTS = ["--num-registers", "4", "--hidden-dim", "24"]


def trained(
    build: Callable[[], nn.Module], dtype: torch.dtype = torch.float32, *, scale: float = 1.0, seed: int = 0
) -> nn.Module:
    """The module that ``build()`` makes, its parameters moved from their initial values."""
    torch.manual_seed(seed)
    return _moved(build().to(dtype), scale)


def moved(module: nn.Module, *, scale: float = 1.0, seed: int = 0) -> nn.Module:
    """The module itself, its parameters moved from their values: many modules change nothing until they are trained."""
    torch.manual_seed(seed)
    return _moved(module, scale)


def _moved(module: nn.Module, scale: float) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn_like(parameter)
    return module
