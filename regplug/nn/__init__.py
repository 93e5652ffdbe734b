"""For authors of plugins: the checks and messages that the built-in readouts use. Importing it imports no torch."""

from regplug.errors import closest, one_line
from regplug.nn.printing import show_settings
from regplug.nn.readouts.checks import check_registers, in_dtype_of
from regplug.nn.readouts.sizes import check_multiple, check_positive, check_sizes

__all__ = [
    "check_multiple",
    "check_positive",
    "check_registers",
    "check_sizes",
    "closest",
    "in_dtype_of",
    "one_line",
    "show_settings",
]
