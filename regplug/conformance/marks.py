"""Finds a network's register tokens by experiment: marks a parameter's row and looks where the mark comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regplug.conformance.subject import SEED, seeded

MAX_ROWS = 64  # of one parameter: a network has few registers, and each row costs a forward
MAX_PARAMETERS = 256  # outside the blocks; each costs a forward
# a row's position is known if its token changes this many times as much as any other
CONTRAST = 2.0
# sizes of a mark, relative to the tokens: in blocks that normalise, a large one changes other tokens by a bounded
# amount; in blocks that do not, a small one is mixed linearly
SCALES = (1.0, 30.0, 0.03)


@dataclass(frozen=True)
class MarkedParameter:
    """A parameter (or buffer) whose rows are tokens that do not depend on the input.

    Args:
        name: Its name in the tokens module.
        shape: Its shape.
        positions: For each row, in order, the position of its token in the output; None if it was not found.
    """

    name: str
    shape: tuple[int, ...]
    positions: tuple[int | None, ...]

    @property
    def found_positions(self) -> list[int]:
        """The positions that were found."""
        return [position for position in self.positions if position is not None]


@dataclass(frozen=True)
class FoundMarks:
    """Where the marks come out of a tokens module.

    Args:
        num_tokens: T.
        of_the_input: Positions whose tokens depend on the input, before tokens are mixed.
        parameters: The parameters whose rows are tokens.
        unclear: Rows, as ``name[row]``, whose mark changed no position clearly more than the others.
    """

    num_tokens: int
    of_the_input: tuple[int, ...]
    parameters: tuple[MarkedParameter, ...]
    unclear: tuple[str, ...]


def find_marks(tokens: nn.Module, inputs: Tensor, progress: Callable[[str], None] = lambda step: None) -> FoundMarks:
    """Find every parameter whose rows are tokens, and the position of each row's token in the output.

    There are two steps. First, every module that maps ``[B, T, D]`` to the same shape is replaced by the identity, so
    that tokens are not mixed: a mark in a register's row changes one position, which is the same for every input. (If
    tokens are still mixed, because the blocks' code is in one forward, the layers with weights among these modules give
    zero instead, so that nothing is added to the residual.) Second, each such row is marked in the unchanged network;
    its token changes more than any other. Parameters are restored to the bit. It takes two forwards for each row
    found, and one for each parameter outside the blocks.

    Args:
        tokens: From inputs to ``[B, T, D]``, in eval mode.
        inputs: Two different samples.
        progress: Called with the parameter's name.
    """
    with torch.no_grad():
        rows: dict[str, list[int]] = {}
        for silence in (False, True):
            bypassed: dict[nn.Module, None] = {}
            with _without_mixing(tokens, bypassed, silence):
                quiet = _run(tokens, inputs)
                of_the_input = _changed(quiet[0], quiet[1])
                if len(of_the_input) < quiet.shape[1]:  # else tokens are mixed outside of these modules
                    for name, tensor in _candidates(tokens, bypassed):
                        progress(name)
                        if found := _rows_that_are_tokens(tokens, inputs, tensor, quiet, of_the_input):
                            rows[name] = found
            if rows:
                break
        named = dict(_tensors(tokens))
        base = _run(tokens, inputs)
        parameters, unclear = [], []
        for name, found in rows.items():
            tensor = named[name]
            positions: list[int | None] = [None] * _num_rows(tensor)
            for row in found:
                progress(f"{name}[{row}]")
                positions[row] = _position(tokens, inputs, tensor, row, base)
                if positions[row] is None:
                    unclear.append(f"{name}[{row}]")
            parameters.append(MarkedParameter(name, tuple(tensor.shape), tuple(positions)))
        return FoundMarks(base.shape[1], tuple(of_the_input), tuple(parameters), tuple(unclear))


@contextmanager
def _without_mixing(root: nn.Module, bypassed: dict[nn.Module, None], silence: bool) -> Iterator[None]:
    """Replace every module that maps tokens to the same shape by the identity; ``bypassed`` collects these modules.

    With ``silence``, only layers with weights among them are replaced, and they give zero.
    """

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        given = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        if given is None or given.ndim != 3 or not isinstance(first, Tensor) or first.shape != given.shape:
            return None
        if silence:
            is_layer = not any(True for _ in module.children()) and any(True for _ in module.parameters())
            return torch.zeros_like(first) if is_layer and first is output else None
        bypassed[module] = None
        return given if first is output else type(output)((given, *output[1:]))

    with ExitStack() as stack:
        for module in root.modules():
            if module is not root:
                stack.enter_context(module.register_forward_hook(keep, with_kwargs=True))
        yield


def _tensors(root: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from root.named_parameters()
    yield from root.named_buffers()


def _candidates(root: nn.Module, bypassed: Iterable[nn.Module]) -> list[tuple[str, Tensor]]:
    """Tensors that may hold registers: with few rows, outside of bypassed modules, no weight of torch's own layers."""
    inside = {id(part) for module in bypassed for part in module.modules()}
    found = []
    for name, tensor in _tensors(root):
        owner = root.get_submodule(name.rpartition(".")[0])
        is_layer_weight = type(owner).__module__.startswith("torch.nn.") and not isinstance(
            owner, (nn.Embedding, nn.ParameterList, nn.ParameterDict)
        )
        has_few_rows = tensor.is_floating_point() and 0 < _num_rows(tensor) <= MAX_ROWS
        if has_few_rows and not is_layer_weight and id(owner) not in inside:
            found.append((name, tensor))
    return found[:MAX_PARAMETERS]


def _rows_that_are_tokens(
    tokens: nn.Module, inputs: Tensor, tensor: Tensor, quiet: Tensor, of_the_input: list[int]
) -> list[int]:
    """The rows whose mark changes one position; none if the parameter changes a position that depends on the input."""
    with _marked(tensor, None, quiet):
        reached = _changed(_run(tokens, inputs), quiet)
    if not reached or set(reached) & set(of_the_input):
        return []
    rows = []
    for row in range(_num_rows(tensor)):
        with _marked(tensor, row, quiet):
            if len(_changed(_run(tokens, inputs), quiet)) == 1:
                rows.append(row)
    return rows


def _position(tokens: nn.Module, inputs: Tensor, tensor: Tensor, row: int, base: Tensor) -> int | None:
    for scale in SCALES:
        with _marked(tensor, row, base, scale):
            change = _change(_run(tokens, inputs), base)
        largest = change.topk(min(2, len(change)))
        if largest.values[0] > 0 and largest.values[0] > CONTRAST * largest.values[1:].sum():
            return int(largest.indices[0])
    return None


@contextmanager
def _marked(tensor: Tensor, row: int | None, like: Tensor, scale: float = 1.0) -> Iterator[None]:
    """Add a mark to one row, or a different mark to each row; afterwards restore the tensor to the bit."""
    flat = tensor.data.reshape(_num_rows(tensor), -1)
    chosen = slice(None) if row is None else slice(row, row + 1)
    kept = tensor.data.clone()
    size = max(float(like.float().square().mean().sqrt()), float(flat.float().square().mean().sqrt()), 1e-3)
    generator = torch.Generator().manual_seed(SEED + (row or 0))
    mark = torch.randn(flat[chosen].shape, generator=generator)
    mark = mark - mark.mean(-1, keepdim=True) if mark.shape[-1] > 1 else mark + 1  # a LayerNorm must not remove it
    changed = flat.clone()
    changed[chosen] += (scale * size * mark).to(flat)
    try:
        tensor.data.copy_(changed.reshape(tensor.shape))
        yield
    finally:
        tensor.data.copy_(kept)


def _run(tokens: nn.Module, inputs: Tensor) -> Tensor:
    with seeded():
        found: Tensor = tokens(inputs)
    return found.detach().float()


def _change(one: Tensor, other: Tensor) -> Tensor:
    """How far each position's token changes, ``[T]``: the largest of all samples."""
    return (one - other).square().sum(-1).sqrt().amax(0)


def _changed(one: Tensor, other: Tensor) -> list[int]:
    """The positions that change by more than rounding does."""
    change = _change(one, other) if one.ndim == 3 else _change(one[None], other[None])
    return (change > 1e-3 * max(float(change.max()), 1e-6)).nonzero().flatten().tolist()


def _num_rows(tensor: Tensor) -> int:
    return tensor.numel() // tensor.shape[-1] if tensor.ndim and tensor.shape[-1] else 0
