"""Builds a module of a stranger's numbers: an outline of it first, on the meta device, where nothing is allocated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import prod

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from regplug.errors import SpecError
from regplug.format.weights import TensorType
from regplug.registry.dtypes import torch_dtype
from regplug.torch_private import AllocationLimit, MetaReadWatch, NoNumbersError, outside_inference_mode

# most parts of a network are modules without weights, and a readout may have no weights at all
PARTS_PER_TENSOR, MORE_PARTS = 16, 1024
# what initializers take besides the weights, where a module has no outline
BYTES_PER_BYTE, MORE_BYTES = 16, 1 << 20


def build_outlined(
    build: Callable[[], nn.Module], compare: Callable[[nn.Module], None], weights: Mapping[str, TensorType]
) -> nn.Module:
    """Build a module on the CPU after its outline was compared with the weights that it is for.

    A module that reads the numbers of its tensors while it is built has no outline; what it allocates is bounded
    instead.

    Args:
        build: Makes the module, on the default device.
        compare: Given the outline, or the module where there is none, raises where it does not fit the weights.
        weights: The weights' types: they bound how many parts and bytes the module may have.

    Raises:
        SpecError: ``build`` refuses, or makes a module of more parts or bytes than these weights can be of.
    """
    parts = PARTS_PER_TENSOR * len(weights) + MORE_PARTS
    limit: AbstractContextManager[object] = nullcontext()
    outline = None
    try:
        with torch.device("meta"), MetaReadWatch(), _at_most(parts):
            outline = build()
    except SpecError as error:
        if not _reads_numbers(error):
            raise
        stored = sum(prod(shape) * torch_dtype(dtype).itemsize for dtype, shape in weights.values())
        limit = AllocationLimit(BYTES_PER_BYTE * stored + MORE_BYTES)
    else:
        compare(outline)
    with torch.device("cpu"), outside_inference_mode(), limit, _at_most(parts):
        module = build()
    if outline is None:
        compare(module)
    return module


def _reads_numbers(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, NoNumbersError):
            return True
        error = error.__cause__
    return False


@contextmanager
def _at_most(parts: int) -> Iterator[None]:
    """Refuse to build on when a module has so many parts: an option may ask for a billion of them.

    Raises:
        SpecError: It has.
    """
    here, count = threading.get_ident(), 0

    def refuse(module: nn.Module, name: str, part: object) -> None:
        nonlocal count
        count += threading.get_ident() == here  # the hooks see what other threads build
        if count > parts:
            raise SpecError(f"expected a module of at most {parts} parts, got more.")

    hooks = [
        register_module_parameter_registration_hook(refuse),
        register_module_buffer_registration_hook(refuse),
        register_module_module_registration_hook(refuse),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
