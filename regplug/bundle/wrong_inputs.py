"""Inputs that every program must refuse."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from regplug.bundle.io_signature import plain_inputs
from regplug.format.manifest import IMAGES, InputSpec, Manifest
from regplug.registry.dtypes import torch_dtype
from regplug.registry.readout_inputs import MASK


def wrong_inputs(manifest: Manifest) -> Iterator[tuple[str, list[Tensor]]]:
    """Inputs that every program of a bundle must refuse, each with a name that says what is wrong.

    Args:
        manifest: Says what the programs take.
    """
    length = manifest.input.min_tokens or int(manifest.input.shape[1])
    good = plain_inputs(manifest.inputs, 2, length)
    for name, given in _wrong_tokens(manifest.input, length):
        yield name, [given, *good[1:]]
    for place, spec in enumerate(manifest.more_inputs, 1):
        for name, wrong in _wrong_more(spec.name, good[place]):
            yield name, [*good[:place], wrong, *good[place + 1 :]]
    if manifest.more_inputs:
        yield "one input alone", good[:1]


def _wrong_tokens(signature: InputSpec, length: int) -> Iterator[tuple[str, Tensor]]:
    _, middle, *rest = signature.shape
    sizes = [length, *map(int, rest)]
    dtype = torch_dtype(signature.dtype)
    words = ["C", "H", "W"] if signature.name == IMAGES else ["R", "D"]
    for index, word in enumerate(words[: len(sizes)]):
        less = [size - (place == index) for place, size in enumerate(sizes)]
        more = [size + (place == index) for place, size in enumerate(sizes)]
        if index > 0:
            yield f"wrong {word}", _zeros(2, *more, dtype=dtype)
        elif middle == "T":
            yield "too few tokens", _zeros(2, *less, dtype=dtype)
        else:
            yield f"wrong {word}", _zeros(2, *less, dtype=dtype)
            yield f"wrong {word}, more", _zeros(2, *more, dtype=dtype)
    yield "wrong rank", _zeros(*sizes, dtype=dtype)
    yield "wrong dtype", _zeros(2, *sizes, dtype=_other(dtype))


def _wrong_more(name: str, good: Tensor) -> Iterator[tuple[str, Tensor]]:
    batch, width = good.shape
    yield f"{name}: wrong width", good.new_ones(batch, width + 1)
    yield f"{name}: wrong batch", good.new_ones(batch + 1, width)
    yield f"{name}: wrong rank", good.new_ones(batch, width, 1)
    yield f"{name}: wrong dtype", good.to(torch.uint8 if name == MASK else _other(good.dtype))
    if name == MASK:
        yield f"{name}: no token", good.new_zeros(batch, width)


def _other(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else torch.float64


def _zeros(*sizes: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(sizes, dtype=dtype, device="cpu")  # not on the caller's default device
