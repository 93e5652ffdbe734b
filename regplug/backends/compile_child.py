"""``python -m regplug.backends.compile_child FOLDER VECTOR``: compiles one graph; see ``compiling``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from regplug.backends.compiling import GRAPH, LIBRARY
from regplug.torch_private import compile_library


def main(folder: str, vector: str) -> None:
    """Read the graph from the folder, and write the library into it."""
    torch.set_num_threads(1)
    graph = torch.export.load(Path(folder) / GRAPH)  # unpickles: this file is the parent's own
    inputs = []
    values = {node.name: node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")}
    for name in graph.graph_signature.user_inputs:  # the other placeholders are constants, which the graph holds
        value = values[name]
        sizes = [size if isinstance(size, int) else size.node.hint for size in value.shape]
        inputs.append(torch.zeros(sizes, dtype=value.dtype))
    compile_library(graph, inputs, vector or None, str(Path(folder) / LIBRARY))


if __name__ == "__main__":
    main(*sys.argv[1:])
