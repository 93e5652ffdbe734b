"""Which programs run without libtorch: those that call only functions that ``regplug::runtime`` has."""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from typing import TYPE_CHECKING

from regplug.backends.elf import called_functions

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

NOTHING = "nothing"
FUNCTION = re.compile(r"^REGPLUG_FUNCTION\((\w+)\)|^REGPLUG_VECTOR.*, (\w+), \w+\)", re.MULTILINE)


def what_it_needs(library: bytes, graph: ExportedProgram) -> str:
    """``"nothing"`` besides the runtime, or ``"libtorch (aoti_torch_cpu_sort)"``, with all that the runtime lacks.

    Args:
        library: The program.
        graph: What it was made from. The runtime's convolution is not transposed, which the library does not show.
    """
    lacking = sorted(set(called_functions(library)) - known_functions())
    if any(map(_is_transposed, graph.graph.nodes)):
        lacking.append("transposed convolution")
    return f"libtorch ({', '.join(lacking)})" if lacking else NOTHING


def _is_transposed(node: Node) -> bool:
    name = str(node.target)
    return name.startswith("aten.conv_transpose") or (name == "aten.convolution.default" and bool(node.args[6]))


@functools.cache
def known_functions() -> frozenset[str]:
    """The functions that a program may call; the runtime is compiled from the same lists."""
    sources = files("regplug").joinpath("share", "regplug-runtime")
    lists = (sources.joinpath(name).read_text("utf-8") for name in ("functions.inc", "vector_functions.inc"))
    return frozenset(one or other for text in lists for one, other in FUNCTION.findall(text))
