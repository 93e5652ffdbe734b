"""Readouts that weight the registers by their content: ``cond_dim`` does not grow with R."""

from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regplug.nn.printing import show_settings
from regplug.nn.readouts.checks import check_registers, in_dtype_of
from regplug.nn.readouts.masking import attention_mask, check_mask, masked_softmax, zero_empty_rows, zero_padding
from regplug.nn.readouts.sizes import attention_width, fixed_count, gated_abmil_width


class RegisterGatedABMIL(nn.Module):
    """A sum weighted by a small gated network.

    ``a = softmax_r(w (tanh(V x_r) * sigm(U x_r)))``, ``c = sum_r a_r x_r``. V, U and w
    are linear layers with torch's initial values, V and U with biases; the source's w has one too, which the softmax
    cancels. * is elementwise.
    Source: Ilse et al., 2018 (arXiv:1802.04712), equation 9; AMLab-Amsterdam/AttentionDeepMIL, model.py.

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D; ``cond_dim`` is D.
        attention_dim: Hidden width of the network.

    Raises:
        SpecError: A size is not a positive integer.

    Example:
        >>> RegisterGatedABMIL(4, 384)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 384])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    attention_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int | None, hidden_dim: int, attention_dim: int = 128) -> None:
        out_dim = gated_abmil_width(num_registers, hidden_dim, attention_dim)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.attention_dim = attention_dim
        self.out_dim = out_dim
        self.value = nn.Linear(hidden_dim, attention_dim)
        self.gate = nn.Linear(hidden_dim, attention_dim)
        self.score = nn.Linear(attention_dim, 1, bias=False)

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample: 2 per multiply-add, 3 per hidden unit (tanh, sigmoid, product) and per weight."""
        num = fixed_count("RegisterGatedABMIL", self.num_registers)
        matrices = 2 * dim * 2 * self.attention_dim + 2 * self.attention_dim + 2 * dim
        return num * (matrices + 3 * self.attention_dim + 3)

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read ``registers`` ``[B, R, D]`` as ``[B, D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'gated-abmil'", self.num_registers, self.hidden_dim)
        if mask is not None:
            check_mask(mask, registers, "readout 'gated-abmil'")
            registers = zero_padding(registers, mask)
        registers = in_dtype_of(self.score.weight, registers).contiguous()
        hidden = torch.tanh(self.value(registers)) * torch.sigmoid(self.gate(registers))
        scores = self.score(hidden)
        weights = torch.softmax(scores, dim=1) if mask is None else masked_softmax(scores, mask)
        return torch.bmm(weights.transpose(1, 2).to(registers.dtype), registers).squeeze(1)

    extra_repr = show_settings


class MultilayerPerceptron(nn.Module):
    """``fc2 gelu(fc1 x)``, with the keys of timm and transformers."""

    approximate: Final[str]

    def __init__(self, hidden_dim: int, inner_dim: int, approximate: str) -> None:
        super().__init__()
        self.approximate = approximate
        self.fc1 = nn.Linear(hidden_dim, inner_dim)
        self.fc2 = nn.Linear(inner_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., D]`` to ``[..., D]``."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))
        return out


class RegisterAttention(nn.Module):
    """Learned queries attend over the registers: multihead attention pooling, the MAP head.

    ``z_i = W_o MHA(q_i; W_k X, W_v X)``, ``y_i = z_i + MLP(LayerNorm(z_i))``, ``c = [y_1 || ... || y_q]``.
    The queries start from a normal distribution with deviation D^-1/2, the rest with torch's initial values.
    Source: SigLIP (Zhai et al., 2023, arXiv:2303.15343). The head is that of Zhai et al., 2022 (arXiv:2106.04560);
    keys are those of timm, layers/attention_pool.py, ``AttentionPoolLatent``, with SigLIP's LayerNorm.

    Args:
        num_registers: Registers per sample, R >= 1; None for any number.
        hidden_dim: Width of a register token, D, a multiple of ``num_heads``; ``cond_dim`` is q * D.
        num_queries: Learned queries, q >= 1.
        num_heads: Heads of the attention.
        mlp_ratio: Hidden width of the MLP, as a multiple of D.
        gelu: The MLP's activation: ``"exact"``, or ``"tanh"``, its approximation, as in the published SigLIP weights.

    Raises:
        SpecError: A size is not a positive integer, ``num_heads`` does not divide D, ``mlp_ratio`` leaves no hidden
            unit, or ``gelu`` is unknown.

    Example:
        >>> RegisterAttention(4, 384, num_queries=2)(torch.zeros(2, 4, 384)).shape
        torch.Size([2, 768])
    """

    num_registers: Final[int | None]
    hidden_dim: Final[int]
    num_queries: Final[int]
    num_heads: Final[int]
    out_dim: Final[int]

    def __init__(
        self,
        num_registers: int | None,
        hidden_dim: int,
        num_queries: int = 1,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        gelu: Literal["exact", "tanh"] = "exact",
    ) -> None:
        out_dim = attention_width(num_registers, hidden_dim, num_queries, num_heads, mlp_ratio, gelu)
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.num_queries = num_queries
        self.num_heads = num_heads
        self.out_dim = out_dim
        self.latent = nn.Parameter(torch.empty(1, num_queries, hidden_dim))
        self.q = nn.Linear(hidden_dim, hidden_dim)
        self.kv = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.proj = nn.Linear(hidden_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.mlp = MultilayerPerceptron(hidden_dim, int(hidden_dim * mlp_ratio), "none" if gelu == "exact" else "tanh")
        nn.init.trunc_normal_(self.latent, std=hidden_dim**-0.5)

    def flop_count(self, dim: int) -> int:
        """FLOPs for one sample: 2 per multiply-add, 3 per weight, 6 per channel of the norm, 1 per GELU and sum.

        The queries' own projection is the same for all samples; it is counted, as if the batch were one.
        """
        num = fixed_count("RegisterAttention", self.num_registers)
        queries, inner = self.num_queries, self.mlp.fc1.out_features
        matrices = num * 2 * dim + queries * (2 * dim + 2 * inner + 2 * num)
        elements = queries * (3 * num * self.num_heads + inner + 7 * dim)
        return 2 * dim * matrices + elements

    def forward(self, registers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read ``registers`` ``[B, R, D]`` as ``[B, q * D]``; another shape is a ShapeError.

        ``mask`` ``[B, R]``, bool, is true where a register counts.
        """
        check_registers(registers, "readout 'attention'", self.num_registers, self.hidden_dim)
        if mask is not None:
            check_mask(mask, registers, "readout 'attention'")
            registers = zero_padding(registers, mask)
        batch, count, width = registers.shape[0], registers.shape[1], self.hidden_dim // self.num_heads
        registers = in_dtype_of(self.latent, registers).contiguous()
        # projected once, not once per sample
        query = self.q(self.latent).view(1, self.num_queries, self.num_heads, width).transpose(1, 2)
        key_value = self.kv(registers).view(batch, count, 2, self.num_heads, width).permute(2, 0, 3, 1, 4)
        allowed = None if mask is None else attention_mask(mask)
        found = F.scaled_dot_product_attention(query.expand(batch, -1, -1, -1), key_value[0], key_value[1], allowed)
        attended = self.proj(found.transpose(1, 2).reshape(batch, self.num_queries, self.hidden_dim))
        pooled: Tensor = attended + self.mlp(self.norm(attended))
        return pooled.flatten(1) if mask is None else zero_empty_rows(pooled.flatten(1), mask)

    extra_repr = show_settings
