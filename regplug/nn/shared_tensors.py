"""A second tree of modules on the same parameters, buffers and hooks, and the check that the first has not changed."""

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
    """Copy a tree of modules; the copy shares its tensors and hooks, and nothing else.

    A parameter or buffer that is trained, moved, converted or replaced in one tree changes in the other: both keep it
    in the same dictionary. Modes, settings and submodules are separate from now on.

    Raises:
        SpecError: A module is scripted, or one of its methods was replaced by a function that calls the module itself:
            the copy would run the original, in the original's mode.
    """
    parts = list(module.modules())
    own: dict[int, nn.Module] = {}
    for part in parts:
        if isinstance(part, torch.jit.ScriptModule):
            raise SpecError(f"{_label(module)}: expected modules of Python, got a scripted {type(part).__name__}.")
        own[id(part)] = type(part).__new__(type(part))  # copy.copy refuses a parametrized module
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
    for part in reversed(compiled):  # inner ones first
        compile_in_place_of(part, own[id(part)], lambda inner: own[id(inner)])
    return own[id(module)]


class Origin:
    """The model that an attached module shares tensors with, held weakly, and which of its modules are shared.

    A copied or pickled one knows no model, because a copy shares no tensors.

    Args:
        model: The model; None for none.
        tokens: What the plugin made from it, before ``share_tensors``.
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
        self._forwards = [
            (path, weakref.ref(part), _forward_of(part))
            for path, part in ([] if model is None else model.named_modules())
            if id(part) in taken and part is not model
        ]

    def check(self) -> None:
        """Refuse a model that changed after ``attach``.

        The attached module would not run an adapter's layers, a forward that was set on a module, or a parametrization.

        Raises:
            SpecError: A module was replaced, or got another forward or parametrization.
        """
        if torch.compiler.is_compiling():  # a compiled graph does not change any more
            return
        for path, name, owner, child in self._edges:
            holder = owner()
            if holder is not None and holder._modules.get(name) is not child():
                got = type(holder._modules.get(name)).__name__
                raise SpecError(
                    f"{self._label}: {path}: expected the module that attach found, got a {got} in its place, which "
                    "the attached module does not run; attach again, or replace it in what attach returned."
                )

        for path, module, forward in self._forwards:
            part = module()
            if part is not None and _forward_of(part) != forward:
                raise SpecError(
                    f"{self._label}: {path}: expected the forward and the parametrizations that attach found, got "
                    "others, which the attached module does not run; attach again, or change them in what attach "
                    "returned."
                )

    def __reduce__(self) -> tuple[Callable[[], Origin], tuple[()]]:
        return Origin, ()


def _forward_of(module: nn.Module) -> tuple[int, frozenset[str]]:
    """Changes when a forward is set on the module itself, or one of its tensors is parametrized."""
    forward = vars(module).get("forward")
    parametrized = module._modules.get("parametrizations")
    return id(forward) if forward is not None else 0, frozenset(() if parametrized is None else parametrized._modules)


def _moved(part: nn.Module, word: str, value: Any, own: dict[int, nn.Module]) -> Any:
    """An attribute's value, with each module in it replaced by its copy."""
    if isinstance(value, nn.Module):
        return own.get(id(value), value)
    if isinstance(value, types.MethodType) and id(value.__self__) in own:
        return types.MethodType(value.__func__, own[id(value.__self__)])
    if type(value) is functools.partial and any(_is_of(one, own) for one in (value.func, *value.args)):
        # accelerate replaces a forward like this
        func, *args = (_moved(part, word, one, own) for one in (value.func, *value.args))
        moved = functools.partial(func, *args, **value.keywords)
        moved.__dict__.update({name: _moved(part, name, one, own) for name, one in vars(value).items()})
        return moved
    if type(value) in (list, tuple) and any(_is_of(one, own) for one in value):
        return type(value)(_moved(part, word, one, own) for one in value)
    if isinstance(value, types.FunctionType) and any(_is_of(one, own) for one in _closed_over(value)):
        raise SpecError(
            f"{_label(part)}: expected the {word} of its class, got a function that calls this module itself and would "
            "run it in its own mode; attach first, and replace it in what attach returned."
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
