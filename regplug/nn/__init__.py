"""For authors of plugins: the checks and messages that the built-in readouts use. Importing it imports no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from regplug.errors import closest, one_line
from regplug.nn.printing import show_settings
from regplug.nn.readouts.checks import check_registers, in_dtype_of
from regplug.nn.readouts.sizes import check_count, check_multiple, check_positive, check_sizes, fixed_count

if TYPE_CHECKING:
    from regplug.nn.readouts.masking import (
        attention_mask,
        check_mask,
        masked_max,
        masked_mean,
        masked_softmax,
        zero_empty_rows,
        zero_padding,
    )

__all__ = [
    "attention_mask",
    "check_count",
    "check_mask",
    "check_multiple",
    "check_positive",
    "check_registers",
    "check_sizes",
    "closest",
    "fixed_count",
    "in_dtype_of",
    "masked_max",
    "masked_mean",
    "masked_softmax",
    "one_line",
    "show_settings",
    "zero_empty_rows",
    "zero_padding",
]


def __getattr__(name: str) -> Any:
    """What needs torch, imported when it is asked for."""
    if name in __all__:
        return getattr(import_module("regplug.nn.readouts.masking"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
