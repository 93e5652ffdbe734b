"""Readouts with several learned queries, each with its own weights over the registers."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regplug.nn import (
    attention_mask,
    check_mask,
    check_registers,
    fixed_count,
    in_dtype_of,
    masked_softmax,
    show_settings,
    zero_empty_rows,
    zero_padding,
)
from regplug_zoo.sizes import efficient_probing_width, pma_width


class RegisterPMA(nn.Module):
    """Pooling by multihead attention: k learned seeds attend over the registers, and are concatenated.

    ``c = [y_1 || ... || y_k], y_i = o_i + relu(W_o o_i), o_i = q_i + sum_r softmax_r(q_i^T W_k x_r / sqrt(D)) W_v x_r,
    q_i = W_q s_i`` for seed s_i; the sum is taken head by head, and all but W_k have a bias. With ``layer_norm`` a norm
    follows each o_i and each y_i. The scale is the root of D, not of a head's width. The seeds start Xavier-uniform
    over ``[1, k, D]``, the projections as ``nn.Linear`` does.

    As in the published code, the paper's feed-forward layer before it is left out. So is that code's key bias: it adds
    the same to all scores of a seed, so it changes no output and has no gradient.
    Source: Set Transformer (Lee et al., 2019); juho-lee/set_transformer, modules.py, ``PMA``.

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D.
        num_seeds: Learned queries, k; ``cond_dim`` is k * D.
        num_heads: Heads; D is a multiple of it.
        layer_norm: Whether to normalise after the attention and after the last layer.

    Raises:
        SpecError: A size is not a positive integer, num_heads does not divide D, or layer_norm is not a bool.

    Example:
        >>> RegisterPMA(4, 384, num_seeds=2)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 768])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    num_seeds: Final[int]
    num_heads: Final[int]
    out_dim: Final[int]
    layer_norm: Final[bool]

    def __init__(
        self,
        num_registers: int | None,
        hidden_dim: int,
        num_seeds: int = 1,
        num_heads: int = 4,
        layer_norm: bool = False,
    ) -> None:
        out_dim = pma_width(num_registers, hidden_dim, num_seeds, num_heads, layer_norm)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.num_seeds = num_seeds
        self.num_heads = num_heads
        self.out_dim = out_dim
        self.layer_norm = layer_norm
        self.seeds = nn.Parameter(torch.empty(1, num_seeds, hidden_dim))
        nn.init.xavier_uniform_(self.seeds)
        self.fc_q = nn.Linear(hidden_dim, hidden_dim)
        self.fc_k = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.fc_v = nn.Linear(hidden_dim, hidden_dim)
        self.fc_o = nn.Linear(hidden_dim, hidden_dim)
        self.ln0 = nn.LayerNorm(hidden_dim) if layer_norm else nn.Identity()
        self.ln1 = nn.LayerNorm(hidden_dim) if layer_norm else nn.Identity()

    def flop_count(self, hidden_dim: int) -> int:
        """FLOPs for one sample: 2 per multiply-add of the four projections and the attention, and the rest.

        The matrix part: W_q and W_o for each seed, W_k and W_v for each register, scores and sums. The rest: 4 per
        score for scale and softmax, 6 per output for biases, relu and residuals, 1 per value for its bias, and 16
        per output for the norms if there are any.
        """
        num, seeds = fixed_count("RegisterPMA", self.num_registers), self.num_seeds
        matrices = 4 * (seeds + num) * hidden_dim * hidden_dim + 4 * seeds * num * hidden_dim
        rest = 4 * seeds * num * self.num_heads + (6 * seeds + num) * hidden_dim
        return matrices + rest + (16 * seeds * hidden_dim if self.layer_norm else 0)

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read ``registers`` ``[B, R, D]`` as ``[B, k * D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'pma'", self.num_registers, self.hidden_dim)
        if mask is not None:
            check_mask(mask, registers, "readout 'pma'")
            registers = zero_padding(registers, mask)
        batch, head_dim = registers.shape[0], self.hidden_dim // self.num_heads
        shape = [batch, registers.shape[1], self.num_heads, head_dim]
        registers = in_dtype_of(self.seeds, registers).contiguous()
        query = self.fc_q(self.seeds).view(1, self.num_seeds, self.num_heads, head_dim).transpose(1, 2)
        query = query.expand(batch, -1, -1, -1)
        allowed = None if mask is None else attention_mask(mask)
        attended = query + F.scaled_dot_product_attention(
            query,
            self.fc_k(registers).view(shape).transpose(1, 2),
            self.fc_v(registers).view(shape).transpose(1, 2),
            allowed,
            scale=self.hidden_dim**-0.5,
        )
        attended = self.ln0(attended.transpose(1, 2).flatten(2))
        conditioning: Tensor = self.ln1(attended + F.relu(self.fc_o(attended)))
        return conditioning.flatten(1) if mask is None else zero_empty_rows(conditioning.flatten(1), mask)

    extra_repr = show_settings


class RegisterEfficientProbing(nn.Module):
    """M learned queries; each averages its own share of the projected channels.

    ``c = [c_1 || ... || c_M], c_i = sum_r softmax_r(q_i^T x_r / sqrt(D)) V_i x_r``: the registers themselves are
    the keys, and V, without bias, gives D / d_out values, of which each query has D / (M d_out). The queries start
    normal with deviation 0.02, V as ``nn.Linear`` does. Parameter names and defaults are the source's.
    Source: Psomas et al., 2025, "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency";
    billpsomas/efficient-probing, poolings/ep.py.

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D; a multiple of num_queries * d_out.
        num_queries: Learned queries, M.
        d_out: What the width is divided by; ``cond_dim`` is D / d_out.

    Raises:
        SpecError: A size is not a positive integer, or num_queries * d_out does not divide D.

    Example:
        >>> RegisterEfficientProbing(4, 384, d_out=2)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 192])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    num_queries: Final[int]
    d_out: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int | None, hidden_dim: int, num_queries: int = 32, d_out: int = 1) -> None:
        out_dim = efficient_probing_width(num_registers, hidden_dim, num_queries, d_out)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.num_queries = num_queries
        self.d_out = d_out
        self.out_dim = out_dim
        self.v = nn.Linear(hidden_dim, self.out_dim, bias=False)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, num_queries, hidden_dim))

    def flop_count(self, hidden_dim: int) -> int:
        """FLOPs for one sample: 2 per multiply-add of scores and V (the matrix part), and the rest.

        The rest: 1 per query's number for the scale, 3 per score for the softmax, 2 per weighted value.
        """
        num = fixed_count("RegisterEfficientProbing", self.num_registers)
        queries, width = self.num_queries, hidden_dim // self.d_out
        matrices = 2 * num * hidden_dim * (queries + width)
        return matrices + queries * hidden_dim + 3 * num * queries + 2 * num * width

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read ``registers`` ``[B, R, D]`` as ``[B, D / d_out]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'efficient-probing'", self.num_registers, self.hidden_dim)
        if mask is not None:
            check_mask(mask, registers, "readout 'efficient-probing'")
            registers = zero_padding(registers, mask)
        registers = in_dtype_of(self.cls_token, registers).contiguous()
        # the queries are the same for all samples: one matrix product, not one per sample
        scores = F.linear(registers, self.cls_token[0] * self.hidden_dim**-0.5)
        weights = (torch.softmax(scores, dim=1) if mask is None else masked_softmax(scores, mask)).unsqueeze(3)
        share = self.out_dim // self.num_queries
        values = self.v(registers).view(registers.shape[0], registers.shape[1], self.num_queries, share)
        conditioning: Tensor = (weights * values).sum(dim=1)
        return conditioning.flatten(1)

    extra_repr = show_settings
