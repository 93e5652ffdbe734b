"""The dtypes of torch by name. Importing this module imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float64", "float16", "bfloat16")  # what a bundle's module may compute in


def torch_dtype(name: str) -> torch.dtype:
    """The dtype with this name, which torch has."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def find_dtype(name: str) -> torch.dtype | None:
    """The dtype that a user names; None if torch has no dtype of that name."""
    import torch

    found = vars(torch).get(name)
    return found if isinstance(found, torch.dtype) else None
