"""Finds the FiLM inputs and the readouts of a network: by their classes, and by what a forward pass shows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

from torch import nn

from regplug.commands.audit.origins import Application, is_inside
from regplug.commands.audit.trace import Plan, Trace
from regplug.nn.pairing import WIDTH_WORDS, film_family


def declared_films(module: nn.Module) -> dict[str, str]:
    """The modules whose class takes conditioning: of a known family, or with a known name in the constructor.

    A module with another one inside only passes the conditioning on, and is not counted.
    """
    labels: dict[type, str | None] = {}
    found: dict[str, str] = {}
    for path, part in module.named_modules():
        if type(part) not in labels:
            labels[type(part)] = _label(type(part))
        if path and (label := labels[type(part)]):
            found[path] = label
    return {path: label for path, label in found.items() if not any(_is_within(one, path) for one in found)}


def plan_of(module: nn.Module, trace: Trace) -> Plan:
    """What a first forward pass shows: the readouts and the FiLM inputs, also those that no class declares."""
    declared = declared_films(module)
    readouts = _readouts(module, trace, declared)
    films = {path: label for path, label in declared.items() if not any(is_inside(path, one) for one in readouts)}
    films |= {
        path: f"{name} (scripted)" for path, name in trace.scripted.items() if not _is_covered(path, films, readouts)
    }
    for one in sorted(trace.applications, key=lambda one: (one.generator, one.where)):
        if _is_covered(one.generator, films, readouts):
            continue
        path = _film_around(module, one, readouts, trace.called)
        if path and not any(_is_within(film, path) for film in films):
            films[path] = class_at(module, path)
    order = {path: place for place, (path, _) in enumerate(module.named_modules())}
    films = dict(sorted(films.items(), key=lambda one: order.get(one[0], len(order))))
    return Plan(films, readouts, list(declared))


def _is_within(path: str, scope: str) -> bool:
    """Whether ``path`` is inside ``scope`` and not ``scope`` itself."""
    return path != scope and is_inside(path, scope)


def _label(cls: type) -> str | None:
    family = film_family(cls)
    if family is not None:
        return f"{cls.__name__} ({family.name})"
    try:
        parameters = inspect.signature(cls).parameters
    except (TypeError, ValueError):  # a scripted module, a class written in C
        return None
    return cls.__name__ if any(word in parameters for word in WIDTH_WORDS) else None


def _readouts(module: nn.Module, trace: Trace, films: Mapping[str, str]) -> list[str]:
    """The outermost modules that read registers, except one that modulates features with an inner one's output."""
    found = list(trace.readouts)
    kept = []
    for path in found:
        inner = [one for one in found if one != path and _holds(module, path, one)]
        if inner and any(
            is_inside(one.generator, path) and not any(is_inside(one.generator, other) for other in inner)
            for one in trace.applications
        ):
            continue
        kept.append(path)
    return [path for path in kept if not any(_is_within(path, one) for one in kept)]


def _film_around(module: nn.Module, application: Application, readouts: Sequence[str], called: set[str]) -> str | None:
    """The module that takes the conditioning vector: the one that applies it, or its part that makes the scale."""
    generator, path = application.generator, application.where
    if not _is_module(module, generator):
        return generator  # a weight's own name
    if not is_inside(generator, path):
        path = ""
    while path not in called or not path or any(_holds(module, path, one) for one in readouts):
        if path == generator:
            return path or None
        path = _step(path, generator)
    child = _step(path, generator) if path != generator else path
    is_list = isinstance(module.get_submodule(child), (nn.ModuleList, nn.ModuleDict))
    return _step(child, generator) if is_list and child != generator else path


def _is_covered(path: str, films: Mapping[str, str], readouts: Sequence[str]) -> bool:
    return any(is_inside(path, one) for one in (*films, *readouts))


def _holds(module: nn.Module, scope: str, path: str) -> bool:
    """Whether a module is or contains another, which may have another path where it is shared."""
    inner = module.get_submodule(path)
    return any(one is inner for one in module.get_submodule(scope).modules())


def _is_module(module: nn.Module, path: str) -> bool:
    return path in dict(module.named_modules())


def class_at(module: nn.Module, path: str) -> str:
    """The name of the class at a path, which may be the path of a parameter."""
    return type(module.get_submodule(path)).__name__ if _is_module(module, path) else "Parameter"


def _step(path: str, target: str) -> str:
    """The next module on the way down from ``path`` to ``target``."""
    below = target[len(path) + 1 if path else 0 :]
    first = below.split(".")[0]
    return f"{path}.{first}" if path else first
