"""How columns of data become a bundle's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regplug.registry.layout import TokenLayout


@dataclass(frozen=True)
class Reading:
    """Which columns are read, and how.

    Args:
        columns: The column of each input.
        layout: Where the registers are, if the first column holds all tokens.
        cast: Whether values may be rounded to an input's dtype.
        preprocess: For encoded images, ``MODULE:FUNCTION`` from a Pillow image to an input; None for the backbone's.
    """

    columns: Mapping[str, str]
    layout: TokenLayout | None
    cast: bool
    preprocess: str | None
