"""The size checks and the ``cond_dim`` of the built-in readouts, without torch, so that a width is cheap to compute.

Each ``*_width`` function has the arguments of its class's constructor, which calls it for ``out_dim``.
"""

import math
from typing import Literal

from regplug.errors import SpecError
from regplug.registry.integers import check_positive_int, is_int


def check_sizes(owner: str, **sizes: int) -> None:
    """Refuse a size that is not a positive integer."""
    for word, size in sizes.items():
        check_positive_int(f"{owner}: {word}", size)


def check_count(owner: str, num_registers: int | None) -> None:
    """Refuse a number of registers that is neither a positive integer nor None, which means any number."""
    if num_registers is not None:
        check_sizes(owner, num_registers=num_registers)


def fixed_count(owner: str, num_registers: int | None) -> int:
    """The number of registers, for a count of FLOPs.

    Raises:
        SpecError: It is None.
    """
    if num_registers is None:
        raise SpecError(f"{owner}: flop_count: expected a fixed number of registers, got None.")
    return num_registers


def check_positive(owner: str, **numbers: float) -> None:
    """Refuse a number that is not positive and finite."""
    for word, number in numbers.items():
        if not ((is_int(number) or isinstance(number, float)) and 0 < number < math.inf):
            raise SpecError(f"{owner}: {word}: expected a positive, finite number, got {number!r}.")


def check_multiple(owner: str, word: str, size: int, of: int, shown: str) -> None:
    """Refuse a size that ``of`` does not divide; ``shown`` names ``of`` in the message."""
    if size % of != 0:
        raise SpecError(f"{owner}: {word}: expected a multiple of {shown}, got {size}.")


def mean_width(num_registers: int | None, hidden_dim: int) -> int:
    """D."""
    check_count("RegisterMean", num_registers)
    check_sizes("RegisterMean", hidden_dim=hidden_dim)
    return hidden_dim


def pool_width(num_registers: int, hidden_dim: int | None = None) -> int | None:
    """D; None if the readout takes any width."""
    check_sizes("RegisterPooling", num_registers=num_registers)
    if hidden_dim is not None:
        check_sizes("RegisterPooling", hidden_dim=hidden_dim)
    return hidden_dim


def concat_width(num_registers: int, hidden_dim: int) -> int:
    """``R * D``."""
    check_sizes("RegisterConcat", num_registers=num_registers, hidden_dim=hidden_dim)
    return num_registers * hidden_dim


def compress_concat_width(num_registers: int, hidden_dim: int, compressed_dim: int) -> int:
    """``R * c``."""
    sizes = {"num_registers": num_registers, "hidden_dim": hidden_dim, "compressed_dim": compressed_dim}
    check_sizes("RegisterCompressConcat", **sizes)
    return num_registers * compressed_dim


def select_concat_width(num_registers: int, hidden_dim: int, indices: tuple[int, ...]) -> int:
    """``k * D`` for k chosen registers."""
    check_sizes("RegisterSelectConcat", num_registers=num_registers, hidden_dim=hidden_dim)
    in_range = [index for index in indices if is_int(index) and 0 <= index < num_registers]
    if not in_range or len(set(in_range)) != len(indices):
        raise SpecError(
            f"RegisterSelectConcat: indices: expected different integers from 0 to {num_registers - 1}, "
            f"at least one, got {list(indices)}."
        )
    return len(indices) * hidden_dim


def mamba_reg_width(num_registers: int, hidden_dim: int, ratio: int = 2) -> int:
    """``R * D / ratio``."""
    check_sizes("MambaRegReadout", num_registers=num_registers, hidden_dim=hidden_dim, ratio=ratio)
    if ratio == 1:
        raise SpecError("MambaRegReadout: ratio: expected 2 or more, got 1; use 'concat'.")
    check_multiple("MambaRegReadout", "hidden_dim", hidden_dim, ratio, f"ratio={ratio}")
    return num_registers * (hidden_dim // ratio)


def gated_abmil_width(num_registers: int | None, hidden_dim: int, attention_dim: int = 128) -> int:
    """D."""
    sizes = {"hidden_dim": hidden_dim, "attention_dim": attention_dim}
    check_count("RegisterGatedABMIL", num_registers)
    check_sizes("RegisterGatedABMIL", **sizes)
    return hidden_dim


def attention_width(
    num_registers: int | None,
    hidden_dim: int,
    num_queries: int = 1,
    num_heads: int = 8,
    mlp_ratio: float = 4.0,
    gelu: Literal["exact", "tanh"] = "exact",
) -> int:
    """``q * D``."""
    owner = "RegisterAttention"
    check_count(owner, num_registers)
    check_sizes(owner, hidden_dim=hidden_dim, num_queries=num_queries, num_heads=num_heads)
    check_multiple(owner, "hidden_dim", hidden_dim, num_heads, f"num_heads={num_heads}")
    check_positive(owner, mlp_ratio=mlp_ratio)
    if int(hidden_dim * mlp_ratio) < 1:
        raise SpecError(f"{owner}: mlp_ratio: expected at least 1 / {hidden_dim}, got {mlp_ratio}.")
    if gelu not in ("exact", "tanh"):
        raise SpecError(f"{owner}: gelu: expected 'exact' or 'tanh', got {gelu!r}.")
    return num_queries * hidden_dim
