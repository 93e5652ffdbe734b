"""Which programs run without libtorch: those that call only functions that ``regplug::runtime`` has."""

from __future__ import annotations

import functools
import re
from importlib.resources import files

from regplug.backends.elf import called_functions

NOTHING, LIBTORCH = "nothing", "libtorch"
FUNCTION = re.compile(r"^REGPLUG_FUNCTION\((\w+)\)|^REGPLUG_VECTOR.*, (\w+), std::", re.MULTILINE)


def what_it_needs(library: bytes) -> str:
    """``"nothing"`` besides the runtime, or ``"libtorch"``."""
    return LIBTORCH if set(called_functions(library)) - known_functions() else NOTHING


@functools.cache
def known_functions() -> frozenset[str]:
    """The functions that a program may call; the runtime is compiled from the same lists."""
    sources = files("regplug").joinpath("share", "regplug-runtime")
    lists = (sources.joinpath(name).read_text("utf-8") for name in ("functions.inc", "vector_functions.inc"))
    return frozenset(one or other for text in lists for one, other in FUNCTION.findall(text))
