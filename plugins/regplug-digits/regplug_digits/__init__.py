"""A digit classifier in which register tokens shape the convolution kernels; importing this imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import DigitsViT

__all__ = ["load_pretrained"]


def load_pretrained() -> DigitsViT:
    """Build the shipped classifier with its trained weights.

    Returns:
        The classifier in eval mode, with the readout ``compress-concat``.

    Example:
        >>> load_pretrained().cond_dim
        48
    """
    from .weights import load_shipped

    return load_shipped()
