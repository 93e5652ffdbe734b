"""A small diffusion transformer, from its published description; a stand-in, as no package offers the original.

Peebles and Xie, 2022 (arXiv:2212.09748), section 3.2: blocks of attention and an MLP, each behind adaLN-Zero: a norm
without weights, ``(1 + scale) * h + shift``, and a gate on the branch, all six from one linear layer that starts at 0.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIM, TOKENS, CHANNELS, CLASSES = 32, 16, 4, 10


class StepEmbedding(nn.Module):
    """Sines and cosines of a step, and two layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, step: Tensor) -> Tensor:
        half = self.dim // 2
        rates = torch.exp(-math.log(100.0) * torch.arange(half, device=step.device) / half)
        angles = step.float()[:, None] * rates
        found: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))
        return found


class Attention(nn.Module):
    """Self-attention of two heads."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (one.unflatten(-1, (2, -1)).transpose(1, 2) for one in self.into(tokens).chunk(3, dim=-1))
        found: Tensor = self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return found


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return tokens * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class DiTBlock(nn.Module):
    """Attention and an MLP, each modulated, gated, and with a way around it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(dim)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        nn.init.zeros_(self.adaLN_modulation[1].weight)
        nn.init.zeros_(self.adaLN_modulation[1].bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_msa.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_msa, scale_msa))
        return x + gate_mlp.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """A modulated norm and a linear layer that starts at 0."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        for layer in (self.adaLN_modulation[1], self.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        found: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return found


class DiT(nn.Module):
    """Noisy tokens ``[B, N, C]``, a step ``[B]`` and a class ``[B]`` -> the noise, of the tokens' shape."""

    def __init__(self, dim: int = DIM, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(CHANNELS, dim)
        self.positions = nn.Parameter(torch.randn(1, TOKENS, dim) * 0.02)
        self.step_embedding = StepEmbedding(dim)
        self.class_embedding = nn.Embedding(CLASSES, dim)
        self.blocks = nn.ModuleList(DiTBlock(dim) for _ in range(depth))
        self.final_layer = FinalLayer(dim, CHANNELS)

    def forward(self, latent: Tensor, step: Tensor, label: Tensor) -> Tensor:
        x = self.embed(latent) + self.positions
        c = self.condition(step, label)
        for block in self.blocks:
            x = block(x, c)
        found: Tensor = self.final_layer(x, c)
        return found

    def condition(self, step: Tensor, label: Tensor) -> Tensor:
        """The conditioning vector of each sample."""
        found: Tensor = self.step_embedding(step) + self.class_embedding(label)
        return found


def dit_inputs(batch: int = 16) -> dict[str, Tensor]:
    """One batch: noise, steps and classes that differ."""
    generator = torch.Generator().manual_seed(0)
    return {
        "latent": torch.randn(batch, TOKENS, CHANNELS, generator=generator),
        "step": torch.arange(batch) * 3.0,
        "label": torch.arange(batch) % CLASSES,
    }
