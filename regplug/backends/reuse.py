"""Programs without weights are made once: the next export finds them in the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from regplug.backends.cache import find, keep, key_of, sole_maker
from regplug.backends.graph import format_graph
from regplug.backends.interface import Program, Source
from regplug.registry.version import own_version


def reused(
    backend: str, source: Source, graph: ExportedProgram, settings: Mapping[str, Any], make: Callable[[], list[Program]]
) -> list[Program]:
    """The programs that ``make`` gives, or those that it gave earlier for the same graph.

    Only for programs without weights. The key covers all that determines them: graph; names, dtypes, shapes and
    offsets of the weights; input and outputs; the description; backend; settings; the versions of torch and regplug.

    Args:
        backend: The backend's name.
        source: What is exported.
        graph: Its graph.
        settings: What else the programs depend on; JSON values.
        make: Makes them.

    Raises:
        ExportError: ``make`` does.
    """
    versions = {"torch": torch.__version__, "regplug": own_version()}
    key = key_of(
        {
            "graph": format_graph(graph),
            "weights": {name: dataclasses.asdict(stored) for name, stored in source.weights.items()},
            "input": dataclasses.asdict(source.input),
            "more_inputs": [dataclasses.asdict(one) for one in source.more_inputs],
            "outputs": [dataclasses.asdict(output) for output in source.outputs],
            "description": source.description,
            "backend": backend,
            "settings": settings,
            **versions,
        }
    )
    if (programs := _find(key)) is not None:
        return programs
    with sole_maker(key):
        if (programs := _find(key)) is not None:  # another process made them meanwhile
            return programs
        programs = make()
        description = {
            "backend": backend,
            **{word: source.description[word] for word in ("holds", "strategy", "num_registers", "hidden_dim")},
            "settings": settings,
            "programs": {program.file: dict(program.properties) for program in programs},
            **versions,
        }
        keep(key, description, {program.file: program.data for program in programs})
    return programs


def _find(key: str) -> list[Program] | None:
    found = find(key)
    if found is None:
        return None
    description, files = found
    return [Program(name, files[name], properties) for name, properties in sorted(description["programs"].items())]
