"""The registry of what is installed, and the functions that most users need of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regplug.forking import lock_over_forks
from regplug.registry import Registry

if TYPE_CHECKING:
    from regplug.spec import ReadoutSpec

_default: Registry | None = None
_default_lock = lock_over_forks()


def default_registry() -> Registry:
    """The registry of what is installed, made at first use; a default, and nothing else uses it."""
    global _default
    if _default is None:
        with _default_lock:
            if _default is None:
                _default = Registry.installed()
    return _default


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
