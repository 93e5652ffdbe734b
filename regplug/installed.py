"""The registry of what is installed, and the functions that most users need of it."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from regplug.registry import Registry

if TYPE_CHECKING:
    from regplug.spec import ReadoutSpec

_default: Registry | None = None
_default_lock = threading.RLock()


def default_registry() -> Registry:
    """The registry of what is installed, made at first use; a default, and nothing else uses it."""
    global _default
    if _default is None:
        with _default_lock:
            if _default is None:
                _default = Registry.installed()
    return _default


def _before_fork() -> None:
    # a child that is forked while another thread imports a plugin would wait for that thread for ever
    _default_lock.acquire()
    if _default is not None:
        _default.lock.acquire()


def _after_fork() -> None:
    if _default is not None:
        _default.lock.release()
    _default_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def resolve(strategy: str, *, num_registers: int, hidden_dim: int, **options: Any) -> ReadoutSpec:
    """``Registry.resolve`` on the installed plugins.

    Example:
        >>> resolve("compress-concat", num_registers=4, hidden_dim=384, compressed_dim=96).cond_dim
        384
    """
    return default_registry().resolve(strategy, num_registers=num_registers, hidden_dim=hidden_dim, **options)


def create(strategy: str, *, num_registers: int, hidden_dim: int, **options: Any) -> Any:
    """``resolve(...).build()``: the readout itself, an ``nn.Module``.

    All arguments are plain values, so it works as the target of a lazy configuration (Hydra's ``_target_``).

    Example:
        >>> import torch
        >>> create("mean", num_registers=4, hidden_dim=384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """
    return resolve(strategy, num_registers=num_registers, hidden_dim=hidden_dim, **options).build()


def strategies() -> list[str]:
    """The installed strategies' names."""
    return default_registry().strategies()


def backbones() -> list[str]:
    """The installed backbones' names."""
    return default_registry().backbones()
