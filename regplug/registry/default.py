"""The registry of the installed plugins, and the functions that most users need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regplug.registry.fork_locks import lock_over_forks
from regplug.registry.registry import Registry

if TYPE_CHECKING:
    from regplug.registry.spec import ReadoutSpec

_default: Registry | None = None
_default_lock = lock_over_forks()


def default_registry() -> Registry:
    """The registry of the installed plugins: made at first use, and used wherever no other one is given.

    Plugins that a program adds (``register``) are known to this process alone.
    """
    global _default
    if _default is None:
        with _default_lock:
            if _default is None:
                _default = Registry.installed()
    return _default


def resolve(strategy: str, *, num_registers: int | None, hidden_dim: int, **options: Any) -> ReadoutSpec:
    """Check a choice among the installed strategies and find its ``cond_dim``; nothing is allocated.

    Args:
        strategy: A name, ``pool`` or ``acme-readouts:attend``.
        num_registers: Registers per sample, R; None for any number of tokens, where the strategy takes it.
        hidden_dim: Width of a register token, D.
        **options: The strategy's own options; its constructor's signature and type hints say which.

    Raises:
        NameLookupError: The strategy is unknown or ambiguous.
        PluginError: Its plugin is broken.
        SpecError: A size or an option does not fit.

    Example:
        >>> resolve("compress-concat", num_registers=4, hidden_dim=384, compressed_dim=96).cond_dim
        384
    """
    return default_registry().resolve(strategy, num_registers=num_registers, hidden_dim=hidden_dim, **options)


def create(strategy: str, *, num_registers: int | None, hidden_dim: int, **options: Any) -> Any:
    """``resolve(...).build()``: the readout itself, an ``nn.Module``.

    All arguments are plain values, so it works as the target of a lazy configuration (Hydra's ``_target_``). Arguments
    and errors are those of ``resolve``.

    Example:
        >>> import torch
        >>> create("mean", num_registers=4, hidden_dim=384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """
    return resolve(strategy, num_registers=num_registers, hidden_dim=hidden_dim, **options).build()


def strategies() -> list[str]:
    """The installed strategies' names, sorted; ``distribution:name`` where two distributions offer one.

    Broken plugins are left out: ``default_registry().plugins()`` says why.
    """
    return default_registry().strategies()


def backbones() -> list[str]:
    """The installed backbones' names, as ``strategies`` gives those of readouts."""
    return default_registry().backbones()
