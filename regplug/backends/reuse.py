"""Programs that hold no weights are made once: the next export finds them in the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from regplug.backends.cache import find, keep, key_of
from regplug.backends.graph import format_graph
from regplug.backends.interface import Program, Source
from regplug.registry.version import own_version


def reused(
    backend: str, source: Source, graph: ExportedProgram, settings: Mapping[str, Any], make: Callable[[], list[Program]]
) -> list[Program]:
    """The programs that ``make`` gives, or those that it gave before for the same graph.

    Only for programs without weights. The key is all that determines them: graph, weights' names, dtypes, shapes and
    places, what the module takes and gives, what it is, backend, settings, and the versions of torch and regplug.

    Args:
        backend: The backend's name.
        source: What is exported.
        graph: Its graph.
        settings: What else decides about the programs; JSON values.
        make: Makes them.

    Raises:
        ExportError: ``make`` does.
    """
    made_with = {"torch": torch.__version__, "regplug": own_version()}
    key = key_of(
        {
            "graph": format_graph(graph),
            "weights": {name: dataclasses.asdict(stored) for name, stored in source.weights.items()},
            "input": dataclasses.asdict(source.input),
            "outputs": [dataclasses.asdict(output) for output in source.outputs],
            "description": source.description,
            "backend": backend,
            "settings": settings,
            **made_with,
        }
    )
    if (found := find(key)) is not None:
        said, files = found
        return [Program(name, files[name], properties) for name, properties in sorted(said["programs"].items())]
    programs = make()
    description = {
        "backend": backend,
        **{word: source.description[word] for word in ("holds", "strategy", "num_registers", "hidden_dim")},
        "settings": settings,
        "programs": {program.file: dict(program.properties) for program in programs},
        **made_with,
    }
    keep(key, description, {program.file: program.data for program in programs})
    return programs
