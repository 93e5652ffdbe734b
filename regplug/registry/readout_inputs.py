"""What a readout takes besides its tokens: a mask, if ``forward`` has a parameter of that name, and vectors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MASK = "mask"


def takes_mask(readout: Any) -> bool:
    """Whether a readout, or its class, has ``forward(registers, mask=None)``; then it reads any number of tokens.

    Args:
        readout: The module or its class.
    """
    forward = getattr(readout, "forward", None)
    try:
        return forward is not None and MASK in inspect.signature(forward).parameters
    except (TypeError, ValueError):  # a scripted or built-in forward has no signature
        return False


def vector_widths(readout: Any) -> Mapping[str, int]:
    """Name and width of each vector that ``forward(registers, vectors={...})`` takes; empty for most readouts.

    Args:
        readout: The module.
    """
    widths: Mapping[str, int] = getattr(readout, "vector_widths", {})
    return widths


def zero_vectors(widths: Mapping[str, int], registers: Tensor) -> dict[str, Any]:
    """The keywords with which a readout is called on ``registers``, its vectors being zeros; none for most readouts.

    Args:
        widths: From ``vector_widths``.
        registers: ``[B, R, D]``; the vectors get their batch, dtype and device.
    """
    vectors = {name: registers.new_zeros(len(registers), width) for name, width in widths.items()}
    return {"vectors": vectors} if vectors else {}
