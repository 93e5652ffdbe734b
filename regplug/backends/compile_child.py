"""The child process ``regplug.backends.compile_child FOLDER VECTOR``: compiles one graph; see ``compiling``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from regplug.backends.compiling import GRAPH, LIBRARY, REFUSED
from regplug.backends.inductor_private import NoShimError, compile_library


def main(folder: str, vector: str) -> None:
    """Read the graph from the folder; write the library into it, or the operation that no library can call."""
    torch.set_num_threads(1)
    graph = torch.export.load(Path(folder) / GRAPH)  # unpickles: the parent wrote this file
    inputs = []
    values = {node.name: node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")}
    for name in graph.graph_signature.user_inputs:  # the other placeholders are constants of the graph
        value = values[name]
        sizes = [size if isinstance(size, int) else size.node.hint for size in value.shape]
        inputs.append(torch.zeros(sizes, dtype=value.dtype))
    try:
        compile_library(graph, inputs, vector or None, str(Path(folder) / LIBRARY))
    except Exception as error:  # Inductor wraps exceptions in its own
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, NoShimError):
            cause = cause.__cause__ or getattr(cause, "inner_exception", None)
        if cause is not None:
            (Path(folder) / REFUSED).write_text(str(cause))
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
