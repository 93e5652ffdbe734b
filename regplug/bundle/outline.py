"""Builds a module from untrusted sizes: first an outline on the meta device, where nothing is allocated."""

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
MAX_PARTS_PER_TENSOR, MAX_MORE_PARTS = 16, 1024
# of memory for a module without an outline: initializers need more than the weights
MAX_BYTES_PER_BYTE, MAX_MORE_BYTES = 16, 1 << 20


def build_outlined(
    build: Callable[[], nn.Module], compare: Callable[[nn.Module], None], weights: Mapping[str, TensorType]
) -> nn.Module:
    """Build a module on the CPU after its outline was compared with its weights.

    A module that reads numbers from its tensors while it is built has no outline; instead, its memory is limited.

    Args:
        build: Makes the module, on the default device.
        compare: Called with the outline, or without one with the module; raises if it does not fit the weights.
        weights: The weights' types; they limit how many parts and bytes the module may have.

    Raises:
        SpecError: ``build`` refuses, or makes a module with more parts or bytes than these weights allow.
    """
    parts = MAX_PARTS_PER_TENSOR * len(weights) + MAX_MORE_PARTS
    limit: AbstractContextManager[object] = nullcontext()
    outline = None
    try:
        with torch.device("meta"), MetaReadWatch(), _at_most(parts):
            outline = build()
    except SpecError as error:
        if not _reads_numbers(error):
            raise
        stored = sum(prod(shape) * torch_dtype(dtype).itemsize for dtype, shape in weights.values())
        limit = AllocationLimit(MAX_BYTES_PER_BYTE * stored + MAX_MORE_BYTES)
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
    """Stop building a module with more parts: an option may ask for a billion of them.

    Raises:
        SpecError: It has more parts.
    """
    here, count = threading.get_ident(), 0

    def refuse(module: nn.Module, name: str, part: object) -> None:
        nonlocal count
        count += threading.get_ident() == here  # the hooks also see what other threads build
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
