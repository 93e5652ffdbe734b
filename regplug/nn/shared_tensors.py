"""Modules of one's own on the tensors of others: the same parameters, buffers and hooks, another tree of modules."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from regplug.errors import SpecError
from regplug.torch_private import SHARED_STATE, compile_in_place_of, forget_compiled, is_compiled


def share_tensors(module: nn.Module) -> nn.Module:
    """A tree of modules like ``module``'s that shares its tensors and hooks, and nothing else.

    A parameter or buffer that is trained, moved, converted or replaced in one of them is so in the other: both keep it
    in the same dictionary. Modes, settings and submodules are each one's own from here on.

    Raises:
        SpecError: A module was scripted, or something replaced one of its methods by a function that calls the module
            itself: that would go on running the original, in the original's mode.
    """
    parts = list(module.modules())
    own: dict[int, nn.Module] = {}
    for part in parts:
        if isinstance(part, torch.jit.ScriptModule):
            raise SpecError(f"{_label(module)}: expected modules of Python, got a scripted {type(part).__name__}.")
        own[id(part)] = type(part).__new__(type(part))  # copy.copy is forbidden where there is a parametrization
    compiled = [part for part in parts if is_compiled(part)]
    for part in parts:
        if is_compiled(part):
            continue
        state = {
            word: value if word in SHARED_STATE else _moved(part, word, value, own)
            for word, value in forget_compiled(vars(part)).items()
            if word != "_modules"
        }
        children = {name: None if child is None else own[id(child)] for name, child in part._modules.items()}
        own[id(part)].__dict__.update(state, _modules=children)
    for part in reversed(compiled):  # what is inside first
        compile_in_place_of(part, own[id(part)], lambda inner: own[id(inner)])
    return own[id(module)]


class Origin:
    """The model whose tensors an attached module shares, held weakly, and which of its modules were taken.

    It knows nothing of the model where it was copied or pickled: a copy shares no tensors.

    Args:
        model: The model; None for none.
        tokens: What a plugin made of it, before it got modules of its own.
    """

    def __init__(self, model: nn.Module | None = None, tokens: nn.Module | None = None) -> None:
        taken = set() if tokens is None else {id(part) for part in tokens.modules()}
        self._label = "" if model is None else _label(model)
        self._edges = [
            (f"{path}.{name}".lstrip("."), name, weakref.ref(owner), weakref.ref(child))
            for path, owner in ([] if model is None else model.named_modules())
            for name, child in owner._modules.items()
            if child is not None and id(child) in taken
        ]
        self._ways = [
            (path, weakref.ref(part), _way_to_run(part))
            for path, part in ([] if model is None else model.named_modules())
            if id(part) in taken and part is not model
        ]

    def check(self) -> None:
        """Refuse to go on with modules that the model has replaced since, or runs otherwise.

        An adapter's layers would not be run, nor would a forward that was set on a module, or a parametrization.

        Raises:
            SpecError: It has.
        """
        for path, name, owner, child in self._edges:
            holder = owner()
            if holder is not None and holder._modules.get(name) is not child():
                got = type(holder._modules.get(name)).__name__
                raise SpecError(
                    f"{self._label}: {path}: expected the module that it had when it was attached, got a {got} in its "
                    "place, which what was attached does not run; attach again, or replace it in what attach gave."
                )

        for path, module, way in self._ways:
            part = module()
            if part is not None and _way_to_run(part) != way:
                raise SpecError(
                    f"{self._label}: {path}: expected the forward and the parametrizations that it had when it was "
                    "attached, got others, which what was attached does not run; attach again, or change them in what "
                    "attach gave."
                )

    def __reduce__(self) -> tuple[Callable[[], Origin], tuple[()]]:
        return Origin, ()


def _way_to_run(module: nn.Module) -> tuple[int, frozenset[str]]:
    """What changes when a forward is set on a module itself, or one of its tensors is parametrized."""
    forward = vars(module).get("forward")
    parametrized = module._modules.get("parametrizations")
    return id(forward) if forward is not None else 0, frozenset(() if parametrized is None else parametrized._modules)


def _moved(part: nn.Module, word: str, value: Any, own: dict[int, nn.Module]) -> Any:
    """An attribute's value, with the modules in it exchanged for one's own."""
    if isinstance(value, nn.Module):
        return own.get(id(value), value)
    if isinstance(value, types.MethodType) and id(value.__self__) in own:
        return types.MethodType(value.__func__, own[id(value.__self__)])
    if type(value) is functools.partial and any(_is_of(one, own) for one in (value.func, *value.args)):
        # as accelerate replaces a forward
        func, *args = (_moved(part, word, one, own) for one in (value.func, *value.args))
        moved = functools.partial(func, *args, **value.keywords)
        moved.__dict__.update({name: _moved(part, name, one, own) for name, one in vars(value).items()})
        return moved
    if type(value) in (list, tuple) and any(_is_of(one, own) for one in value):
        return type(value)(_moved(part, word, one, own) for one in value)
    if isinstance(value, types.FunctionType) and any(_is_of(one, own) for one in _closed_over(value)):
        raise SpecError(
            f"{_label(part)}: expected the {word} of its class, got a function that calls this very module, and would "
            "run it in its own mode; attach first, and replace it in what attach gave."
        )
    return value


def _closed_over(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not set yet
            continue


def _is_of(value: Any, own: dict[int, nn.Module]) -> bool:
    return id(value) in own or id(getattr(value, "__self__", None)) in own


def _label(module: nn.Module) -> str:
    return f"model {type(module).__name__}"
