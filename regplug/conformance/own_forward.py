"""Looks for given tokens in a model's own forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from regplug.conformance.subject import seeded


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Args:
        name: The module's name.
        is_block: Whether it is a member of a list or sequence, has several layers, and maps tokens ``[B, T, D]`` to the
            same shape. A part of a block does not count: a network may read its registers inside its last block.
        before: How far the wanted tokens are from the nearest ones in its input, as a fraction of the largest number.
        after: Likewise, for its output.
    """

    name: str
    is_block: bool
    before: float
    after: float


def calls_in_own_forward(network: nn.Module, inputs: Tensor, wanted: Tensor) -> list[Call] | None:
    """The calls in a forward with tokens of the wanted width as input or output; None if the forward fails.

    Args:
        network: The model.
        inputs: Its inputs.
        wanted: Tokens ``[B, R, D]`` to look for.
    """
    calls: list[Call] = []
    before: dict[str, tuple[float, torch.Size | None]] = {}

    def enter(name: str, args: Any, kwargs: Any) -> None:
        given = next(_tokens_in((*args, *kwargs.values()), wanted), None)
        before[name] = _distance(given, wanted), None if given is None else given.shape

    def leave(name: str, module: nn.Module, output: Any) -> None:
        given = next(_tokens_in(output if isinstance(output, (tuple, list)) else (output,), wanted), None)
        distance, shape = before.pop(name, (inf, None))
        layers = sum(any(True for _ in one.parameters(recurse=False)) for one in module.modules())
        is_member = isinstance(network.get_submodule(name.rpartition(".")[0]), (nn.ModuleList, nn.Sequential))
        is_block = is_member and layers > 1 and given is not None and given.shape == shape
        if shape is not None or given is not None:
            calls.append(Call(name, is_block, distance, _distance(given, wanted)))

    with ExitStack() as stack:
        for name, module in network.named_modules():
            if name:
                stack.enter_context(
                    module.register_forward_pre_hook(lambda m, a, k, n=name: enter(n, a, k), with_kwargs=True)
                )
                stack.enter_context(module.register_forward_hook(lambda m, a, output, n=name: leave(n, m, output)))
        try:
            with torch.no_grad(), seeded():
                network(inputs)
        except Exception:  # it takes other inputs, such as a mapping or labels
            return None
    return calls


def _tokens_in(values: Iterable[Any], like: Tensor) -> Iterator[Tensor]:
    for one in values:
        if isinstance(one, Tensor) and one.ndim == 3 and one.shape[::2] == like.shape[::2]:
            yield one


def _distance(tokens: Tensor | None, wanted: Tensor) -> float:
    if tokens is None:
        return inf
    apart = (wanted[:, :, None].double() - tokens[:, None].double()).abs().amax(-1).amin(-1).max()
    return float(apart / wanted.double().abs().max().clamp_min(1e-6))
