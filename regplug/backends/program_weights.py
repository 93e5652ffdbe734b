"""The weights that a program was made for, as its property ``weights``; for programs that hold none themselves."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from regplug.backends.interface import Program, Source
from regplug.format.weights import check_state, read_types, write_types

PROPERTY = "weights"


def weights_property(source: Source) -> dict[str, str]:
    """The property that records names, dtypes and shapes of a source's weights; ``check_weights`` reads it."""
    return {PROPERTY: write_types({name: (stored.dtype, stored.shape) for name, stored in source.weights.items()})}


def check_weights(owner: str, program: Program, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights whose names, dtypes or shapes are not those that the program was made for.

    Args:
        owner: The program's weights file, as ``ExportBackend.open`` gets it.
        program: Its property ``weights`` says what it was made for.
        weights: The module's state dict.

    Raises:
        BundleError: The property is missing or damaged, or the weights differ; names the first difference.
    """
    check_state(owner, read_types(program.label, program.properties.get(PROPERTY, "")), weights)
