"""Which vectors a readout takes besides its tokens: those that its attribute ``vector_widths`` names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


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
