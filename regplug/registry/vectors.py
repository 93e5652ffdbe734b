"""Which vectors a readout takes besides its tokens: those that its attribute ``vector_widths`` names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from regplug.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor


def vector_widths(readout: Any) -> Mapping[str, int]:
    """Name and width of each vector that ``forward(registers, vectors={...})`` takes; empty for most readouts.

    Args:
        readout: The module.
    """
    widths: Mapping[str, int] = getattr(readout, "vector_widths", {})
    return widths


def refuse_vectors(owner: str, readout: Any) -> None:
    """Refuse a readout that needs vectors, where only tokens are at hand.

    Args:
        owner: The readout, for messages.
        readout: The module.

    Raises:
        SpecError: It takes vectors.
    """
    if names := ", ".join(vector_widths(readout)):
        raise SpecError(
            f"{owner}: expected a readout of tokens alone, got one that takes the vectors {names} too; use the join "
            "without them."
        )


def zero_vectors(readout: Any, registers: Tensor) -> dict[str, Any]:
    """The keywords with which a readout is called on ``registers``, its vectors being zeros; none for most readouts.

    Args:
        readout: The module.
        registers: ``[B, R, D]``; the vectors get their batch, dtype and device.
    """
    vectors = {name: registers.new_zeros(len(registers), width) for name, width in vector_widths(readout).items()}
    return {"vectors": vectors} if vectors else {}
