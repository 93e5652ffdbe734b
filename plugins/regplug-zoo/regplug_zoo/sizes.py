"""The size checks and the ``cond_dim`` of these readouts, without torch, so that a width is cheap to compute.

Each function has the arguments of its class's constructor, which calls it for ``out_dim``.
"""

from regplug import SpecError
from regplug.nn import check_count, check_multiple, check_positive, check_sizes


def sum_width(num_registers: int | None, hidden_dim: int) -> int:
    """D."""
    check_count("RegisterSum", num_registers)
    check_sizes("RegisterSum", hidden_dim=hidden_dim)
    return hidden_dim


def max_width(num_registers: int | None, hidden_dim: int) -> int:
    """D."""
    check_count("RegisterMax", num_registers)
    check_sizes("RegisterMax", hidden_dim=hidden_dim)
    return hidden_dim


def avgmax_width(num_registers: int | None, hidden_dim: int) -> int:
    """D."""
    check_count("RegisterAvgMax", num_registers)
    check_sizes("RegisterAvgMax", hidden_dim=hidden_dim)
    return hidden_dim


def mean_std_width(num_registers: int | None, hidden_dim: int, eps: float = 1e-6) -> int:
    """``2 * D``."""
    check_count("RegisterMeanStd", num_registers)
    check_sizes("RegisterMeanStd", hidden_dim=hidden_dim)
    check_positive("RegisterMeanStd", eps=eps)
    return 2 * hidden_dim


def first_token_width(num_registers: int | None, hidden_dim: int) -> int:
    """D."""
    check_count("RegisterFirstToken", num_registers)
    check_sizes("RegisterFirstToken", hidden_dim=hidden_dim)
    return hidden_dim


def last_token_width(num_registers: int | None, hidden_dim: int) -> int:
    """D."""
    check_count("RegisterLastToken", num_registers)
    check_sizes("RegisterLastToken", hidden_dim=hidden_dim)
    return hidden_dim


def mean_sqrt_len_width(num_registers: int | None, hidden_dim: int) -> int:
    """D."""
    check_count("RegisterMeanSqrtLen", num_registers)
    check_sizes("RegisterMeanSqrtLen", hidden_dim=hidden_dim)
    return hidden_dim


def weighted_mean_width(num_registers: int | None, hidden_dim: int) -> int:
    """D."""
    check_count("RegisterWeightedMean", num_registers)
    check_sizes("RegisterWeightedMean", hidden_dim=hidden_dim)
    return hidden_dim


def gem_width(num_registers: int | None, hidden_dim: int, p: float = 3.0, eps: float = 1e-6) -> int:
    """D."""
    check_count("RegisterGeM", num_registers)
    check_sizes("RegisterGeM", hidden_dim=hidden_dim)
    check_positive("RegisterGeM", p=p, eps=eps)
    return hidden_dim


def channel_pool_width(num_registers: int, hidden_dim: int) -> int:
    """D."""
    check_sizes("RegisterChannelPooling", num_registers=num_registers, hidden_dim=hidden_dim)
    return hidden_dim


def per_register_compress_concat_width(num_registers: int, hidden_dim: int, compressed_dim: int) -> int:
    """``R * c``."""
    sizes = {"num_registers": num_registers, "hidden_dim": hidden_dim, "compressed_dim": compressed_dim}
    check_sizes("PerRegisterCompressConcat", **sizes)
    return num_registers * compressed_dim


def concat_linear_width(num_registers: int, hidden_dim: int, out_features: int) -> int:
    """``out_features``."""
    sizes = {"num_registers": num_registers, "hidden_dim": hidden_dim, "out_features": out_features}
    check_sizes("RegisterConcatLinear", **sizes)
    return out_features


def abmil_width(num_registers: int | None, hidden_dim: int, attention_dim: int = 128) -> int:
    """D."""
    sizes = {"hidden_dim": hidden_dim, "attention_dim": attention_dim}
    check_count("RegisterABMIL", num_registers)
    check_sizes("RegisterABMIL", **sizes)
    return hidden_dim


def simpool_width(num_registers: int | None, hidden_dim: int) -> int:
    """D."""
    check_count("RegisterSimPool", num_registers)
    check_sizes("RegisterSimPool", hidden_dim=hidden_dim)
    return hidden_dim


def class_attention_width(num_registers: int | None, hidden_dim: int, num_heads: int = 8) -> int:
    """D."""
    owner = "RegisterClassAttention"
    check_count(owner, num_registers)
    check_sizes(owner, hidden_dim=hidden_dim, num_heads=num_heads)
    check_multiple(owner, "hidden_dim", hidden_dim, num_heads, f"num_heads={num_heads}")
    return hidden_dim


def pma_width(
    num_registers: int | None, hidden_dim: int, num_seeds: int = 1, num_heads: int = 4, layer_norm: bool = False
) -> int:
    """``k * D``."""
    owner = "RegisterPMA"
    check_count(owner, num_registers)
    check_sizes(owner, hidden_dim=hidden_dim, num_seeds=num_seeds, num_heads=num_heads)
    check_multiple(owner, "hidden_dim", hidden_dim, num_heads, f"num_heads={num_heads}")
    if not isinstance(layer_norm, bool):
        raise SpecError(f"{owner}: layer_norm: expected True or False, got {layer_norm!r}.")
    return num_seeds * hidden_dim


def efficient_probing_width(num_registers: int | None, hidden_dim: int, num_queries: int = 32, d_out: int = 1) -> int:
    """``D / d_out``."""
    owner, divisor = "RegisterEfficientProbing", f"num_queries * d_out={num_queries} * {d_out}"
    check_count(owner, num_registers)
    check_sizes(owner, hidden_dim=hidden_dim, num_queries=num_queries, d_out=d_out)
    check_multiple(owner, "hidden_dim", hidden_dim, num_queries * d_out, divisor)
    return hidden_dim // d_out


MIN_PERIOD = 1e-6  # the largest frequency is its inverse, which must be finite


def sinusoidal_width(num_registers: int, hidden_dim: int, dim: int, max_period: float = 10000.0) -> int:
    """R * D * dim; ``dim`` is even."""
    check_sizes("SinusoidalEmbedding", num_registers=num_registers, hidden_dim=hidden_dim, dim=dim)
    check_positive("SinusoidalEmbedding", max_period=max_period)
    if max_period < MIN_PERIOD:
        raise SpecError(f"SinusoidalEmbedding: max_period: expected at least {MIN_PERIOD}, got {max_period}.")
    if dim % 2:
        raise SpecError(f"SinusoidalEmbedding: dim: expected an even number, got {dim}.")
    return num_registers * hidden_dim * dim
