"""Readouts that weight the registers by their content: ``cond_dim`` is D."""

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
    masked_mean,
    masked_softmax,
    show_settings,
    zero_empty_rows,
    zero_padding,
)
from regplug_zoo.sizes import abmil_width, class_attention_width, simpool_width


class RegisterABMIL(nn.Module):
    """An average weighted by each register's content: ``c = sum_r softmax_r(w^T tanh(V x_r)) x_r``.

    V and w start as ``nn.Linear`` does and have no bias, as in the paper; its code has two, of which w's cancels in
    the softmax. ``gated-abmil`` adds a gate.
    Source: Ilse et al., 2018 (arXiv:1802.04712), equation 8; AMLab-Amsterdam/AttentionDeepMIL, model.py, ``Attention``.

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D; ``cond_dim`` is D.
        attention_dim: Rows of V.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterABMIL(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    attention_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int | None, hidden_dim: int, attention_dim: int = 128) -> None:
        out_dim = abmil_width(num_registers, hidden_dim, attention_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.attention_dim = attention_dim
        self.out_dim = out_dim
        self.value = nn.Linear(hidden_dim, attention_dim, bias=False)
        self.score = nn.Linear(attention_dim, 1, bias=False)

    def flop_count(self, hidden_dim: int) -> int:
        """FLOPs for one sample: 2 per multiply-add of V, w and the sum (the matrix part), 1 per tanh, 3R softmax."""
        num = fixed_count("RegisterABMIL", self.num_registers)
        matrices = hidden_dim * self.attention_dim + self.attention_dim + hidden_dim
        return num * (2 * matrices + self.attention_dim + 3)

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Average ``registers`` ``[B, R, D]`` to ``[B, D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'abmil'", self.num_registers, self.hidden_dim)
        if mask is not None:
            check_mask(mask, registers, "readout 'abmil'")
            registers = zero_padding(registers, mask)
        registers = in_dtype_of(self.score.weight, registers).contiguous()
        scores = self.score(torch.tanh(self.value(registers)))
        weights = torch.softmax(scores, dim=1) if mask is None else masked_softmax(scores, mask)
        return torch.bmm(weights.transpose(1, 2), registers).squeeze(1)

    extra_repr = show_settings


class RegisterSimPool(nn.Module):
    """The mean register attends over the normalised registers, which are also the values.

    ``c = sum_r softmax_r((W_q m)^T W_k n_r / sqrt(D)) n_r, n_r = LayerNorm(x_r), m = mean_r x_r``.
    One head. W_q and W_k start as ``nn.Linear`` does, the LayerNorm (eps 1e-6) as the identity.

    Parameter names are the source's, and so is its default of no power mean (``gamma=None``): with gamma it subtracts
    the smallest value of the whole batch, so a sample's output would depend on the other samples.
    Source: SimPool (Psomas et al., 2023, "Keep It SimPool"); billpsomas/efficient-probing, poolings/simpool.py.

    Args:
        num_registers: Registers per sample, R >= 1; None for any number. With one register the output is that
            register, normalised.
        hidden_dim: Width of a register token, D; ``cond_dim`` is D.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterSimPool(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int | None, hidden_dim: int) -> None:
        out_dim = simpool_width(num_registers, hidden_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim
        self.norm_patches = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.wq = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.wk = nn.Linear(hidden_dim, hidden_dim, bias=False)

    def flop_count(self, hidden_dim: int) -> int:
        """FLOPs for one sample: 2 per multiply-add of W_q, W_k and the attention (the matrix part), and the rest.

        The rest: R per channel for the mean, 8 per number for the norm, 4R for scale and softmax.
        """
        num = fixed_count("RegisterSimPool", self.num_registers)
        matrices = 2 * (1 + num) * hidden_dim * hidden_dim + 4 * num * hidden_dim
        return matrices + 9 * num * hidden_dim + 4 * num

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read ``registers`` ``[B, R, D]`` as ``[B, D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'simpool'", self.num_registers, self.hidden_dim)
        if mask is not None:
            check_mask(mask, registers, "readout 'simpool'")
            registers = zero_padding(registers, mask)
        registers = in_dtype_of(self.wq.weight, registers)
        normed = self.norm_patches(registers).unsqueeze(1)
        mean = registers.mean(dim=1) if mask is None else masked_mean(registers, mask)
        query = self.wq(mean).view(-1, 1, 1, self.hidden_dim)
        allowed = None if mask is None else attention_mask(mask)
        # with a dimension for its one head, which the fused kernel and ONNX need
        pooled = F.scaled_dot_product_attention(query, self.wk(normed), normed, allowed).flatten(1)
        return pooled if mask is None else zero_empty_rows(pooled, mask)

    extra_repr = show_settings


class RegisterClassAttention(nn.Module):
    """A learned class token attends over itself and the registers.

    ``c = P [o_1 || ... || o_H] + b, o_h = sum_j softmax_j((Q_h t)^T K_h u_j / sqrt(D / H)) V_h u_j``, where u_0 is the
    token t, u_1 to u_R are the registers, and each of the H heads is D / H wide. The token starts from a truncated
    normal distribution with deviation 0.02, the projections as ``nn.Linear`` does.

    Q, K and V have no bias, as published; parameter names are timm's. Norms, LayerScale and MLP of the block around it
    are left out: a readout has no residual for LayerScale's 1e-4 to start from.
    Source: CaiT (Touvron et al., 2021); timm, models/cait.py, ``ClassAttn``.

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D; ``cond_dim`` is D.
        num_heads: Heads; D is a multiple of it.

    Raises:
        SpecError: A size is not a positive integer, or num_heads does not divide D.

    Example:
        >>> RegisterClassAttention(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    num_heads: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int | None, hidden_dim: int, num_heads: int = 8) -> None:
        out_dim = class_attention_width(num_registers, hidden_dim, num_heads)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.out_dim = out_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, hidden_dim))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.q = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.k = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.v = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.proj = nn.Linear(hidden_dim, hidden_dim)

    def flop_count(self, hidden_dim: int) -> int:
        """FLOPs for one sample: 2 per multiply-add of the four projections and the attention, and the rest.

        The matrix part: Q and P once, K and V for each of R + 1 tokens, scores and sums. The rest: 4 per score for
        scale and softmax, and the bias.
        """
        num = fixed_count("RegisterClassAttention", self.num_registers)
        tokens = num + 1
        matrices = 2 * (2 + 2 * tokens) * hidden_dim * hidden_dim + 4 * tokens * hidden_dim
        return matrices + 4 * tokens * self.num_heads + hidden_dim

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read ``registers`` ``[B, R, D]`` as ``[B, D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'class-attention'", self.num_registers, self.hidden_dim)
        if mask is not None:
            check_mask(mask, registers, "readout 'class-attention'")
            registers = zero_padding(registers, mask)
        batch, head_dim = registers.shape[0], self.hidden_dim // self.num_heads
        shape = [batch, registers.shape[1] + 1, self.num_heads, head_dim]
        registers = in_dtype_of(self.cls_token, registers)
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), registers], dim=1)
        query = self.q(self.cls_token).view(1, 1, self.num_heads, head_dim).expand(batch, -1, -1, -1)
        # the class token always counts
        allowed = None if mask is None else F.pad(mask, [1, 0], value=True).unsqueeze(1).unsqueeze(1)
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            self.k(tokens).view(shape).transpose(1, 2),
            self.v(tokens).view(shape).transpose(1, 2),
            allowed,
        )
        conditioning: Tensor = self.proj(attended.reshape(batch, self.hidden_dim))
        return conditioning if mask is None else zero_empty_rows(conditioning, mask)

    extra_repr = show_settings
