"""One block of ``digits-vit``: registers gather, are read, and by FiLM draw the kernel that mixes the patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regplug

from .data import SIDE
from .kernel import FiLMPairs, SirenKernel, convolve

PATCH = 2
GRID = SIDE // PATCH
NUM_PATCHES = GRID * GRID


class RegisterGather(nn.Module):
    """Registers attend over all tokens and add what they find; patch tokens stay as they are.

    Keys and values pass a hidden layer first: the registers' view of a patch need not be linear in its pixels, unlike
    the patch itself.
    """

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.RMSNorm(hidden_dim)
        self.query = nn.Linear(hidden_dim, hidden_dim)
        self.key_value = nn.Sequential(
            nn.Linear(hidden_dim, 2 * hidden_dim), nn.GELU(), nn.Linear(2 * hidden_dim, 2 * hidden_dim)
        )
        self.out = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``[B, T, D]`` to ``[B, T, D]``."""
        normed = self.norm(tokens)
        query = self._heads(self.query(normed[:, NUM_PATCHES:]))
        key, value = (self._heads(part) for part in self.key_value(normed).chunk(2, dim=-1))
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return torch.cat([tokens[:, :NUM_PATCHES], tokens[:, NUM_PATCHES:] + self.out(found)], dim=1)

    def _heads(self, tokens: Tensor) -> Tensor:
        heads: Tensor = tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads


class KernelMixer(nn.Module):
    """Mix patches by a convolution over their grid, ``y = W_out conv(W_in x, k)``, with a drawn kernel k.

    Linear in x, so without Hyena's gates: with products of patches here, the network classifies nearly as many digits
    from its patches alone, and its registers hardly matter.
    """

    def __init__(self, hidden_dim: int, features: int, num_layers: int) -> None:
        super().__init__()
        self.into = nn.Linear(hidden_dim, hidden_dim)
        self.kernel = SirenKernel(hidden_dim, GRID, features, num_layers)
        self.out = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, patches: Tensor, pairs: FiLMPairs) -> Tensor:
        """Mix ``[B, N, D]`` by the kernels that ``pairs`` modulate."""
        grid = self.into(patches).transpose(1, 2).unflatten(2, (GRID, GRID))
        mixed: Tensor = self.out(convolve(grid, self.kernel(pairs)).flatten(2).transpose(1, 2))
        return mixed


class Block(nn.Module):
    """Registers gather and are read into a conditioning vector, by which the patches are mixed.

    A join reads patches too. Patch tokens never attend to registers, and only the mixer changes them: the registers
    affect the class through the kernel alone, and for a fixed conditioning vector the patches' path is linear.

    Args:
        spec: The readout's spec.
        layout: Which tokens the readout reads.
        num_heads: Heads of the registers' attention.
        kernel_features: Width of the kernel's sine layers.
        num_film_layers: Modulated sine layers of the kernel.
    """

    def __init__(
        self,
        spec: regplug.ReadoutSpec,
        layout: regplug.TokenLayout,
        num_heads: int,
        kernel_features: int,
        num_film_layers: int,
    ) -> None:
        super().__init__()
        width = spec.hidden_dim
        self.gather = RegisterGather(width, num_heads)
        self.norm = nn.RMSNorm(width)
        self.select = regplug.SelectRegisters(layout)
        self.readout = spec.build()
        # not the identity: the readout would get no gradient in the first step
        self.film = regplug.pair(
            spec,
            regplug.KernelFiLMGenerator,
            kernel_hidden_dim=kernel_features,
            num_film_layers=num_film_layers,
            init_type="small_random",
            init_std=0.1,
        )
        self.mixer = KernelMixer(width, kernel_features, num_film_layers)
        self.mlp = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor, conditioning: Tensor | None = None) -> Tensor:
        """Map ``[B, T, D]`` to ``[B, T, D]``; ``conditioning`` replaces the readout's output."""
        tokens = self.gather(tokens)
        if conditioning is None:
            conditioning = self.readout(self.select(self.norm(tokens)))
        patches, registers = tokens[:, :NUM_PATCHES], tokens[:, NUM_PATCHES:]
        patches = patches + self.mixer(patches, self.film(conditioning))
        return torch.cat([patches, registers + self.mlp(registers)], dim=1)

    def read_tokens(self, tokens: Tensor) -> Tensor:
        """The sequence in which this block's readout finds its registers, ``[B, T, D]``."""
        normed: Tensor = self.norm(self.gather(tokens))
        return normed
