"""Which readouts take a mask: those whose ``forward`` has a parameter of that name."""

from __future__ import annotations

import inspect
from typing import Any

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
