"""Every torch name that regplug leans on and torch does not promise to keep, in one file.

Checked against torch 2.10 and 2.13; an earlier or later name would be guarded here by version.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def mark_dynamic_batch(tensor: Tensor) -> None:
    """Let the first size, and no other, vary in ``torch.compile``; ``dynamic=True`` is six times slower.

    ``torch._dynamo.mark_dynamic``: documented, but under a private name.
    """
    torch._dynamo.mark_dynamic(tensor, 0)


def uncompiled(module: nn.Module) -> nn.Module:
    """The module inside what ``torch.compile(module)`` gave, or the module itself (``_orig_mod``)."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else module


def cpu_capability() -> str:
    """The instruction set that ATen's CPU kernels use here, as ``at::get_cpu_capability()`` says in C++."""
    return torch.backends.cpu.get_cpu_capability()


@contextmanager
def torchscript_without_warnings() -> Iterator[None]:
    """Silence TorchScript's own deprecation warning, and no other, where regplug calls it on purpose.

    torch 2.13 gives a DeprecationWarning, 2.15 a FutureWarning.
    """
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)", category)
        yield
