"""A convolution with a kernel that a small sine network computes for each image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FiLMPairs = list[tuple[Tensor, Tensor]]


class SirenKernel(nn.Module):
    """Compute a depthwise 2-D kernel from coordinates, modulated per sample by FiLM pairs.

    ``h_0 = sin(W_0 p + b_0)``, ``h_l = gamma_l * sin(W_l h_{l-1} + b_l) + beta_l``, ``k = W_out h_L + b``,
    for every offset p of the kernel, both coordinates in [-1, 1]. Sources: SIREN (Sitzmann et al., 2020)
    for the sine layers and their initial ranges; CKConv (Romero et al., 2021) for a kernel given by a
    network; nvSubquadratic, modules/kernels_nd.py, for the position of the modulation, after the sine.

    Args:
        channels: Channels of the kernel, one filter each.
        side: Side of the grid to be convolved. The kernel has 2 * side - 1 offsets along each axis, so that
            every position reaches every other.
        features: Width of the sine layers, and of every gamma and beta.
        num_layers: Modulated sine layers, each with its own FiLM pair.

    Example:
        >>> identity = [(torch.ones(5, 32), torch.zeros(5, 32))] * 2
        >>> SirenKernel(channels=48, side=4, features=32, num_layers=2)(identity).shape
        torch.Size([5, 48, 7, 7])
    """

    def __init__(self, channels: int, side: int, features: int, num_layers: int) -> None:
        super().__init__()
        self.side = side
        self.first = nn.Linear(2, features)
        layers = [nn.Linear(features, features) for _ in range(num_layers)]
        self.layers = nn.ModuleList(layers)
        self.out = nn.Linear(features, channels)
        # at most half a period from the middle to the edge, so the kernel starts smooth
        nn.init.uniform_(self.first.weight, -math.pi, math.pi)
        bound = math.sqrt(6.0 / features)
        for layer in layers:
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)
        # divided by the side, or the sum over side * side places would outgrow its input
        nn.init.uniform_(self.out.weight, -bound / side, bound / side)
        nn.init.zeros_(self.out.bias)

    def forward(self, pairs: FiLMPairs) -> Tensor:
        """Compute one kernel per sample.

        Args:
            pairs: ``num_layers`` times ``(gamma, beta)``, each ``[B, features]``.

        Returns:
            Kernels ``[B, channels, 2 * side - 1, 2 * side - 1]``.
        """
        weight = self.out.weight
        axis = torch.linspace(-1, 1, 2 * self.side - 1, device=weight.device, dtype=weight.dtype)
        hidden = torch.sin(self.first(torch.cartesian_prod(axis, axis)))
        for layer, (gamma, beta) in zip(self.layers, pairs, strict=True):
            hidden = gamma.unsqueeze(1) * torch.sin(layer(hidden)) + beta.unsqueeze(1)
        drawn: Tensor = self.out(hidden).transpose(1, 2).unflatten(2, (len(axis), len(axis)))
        return drawn


def convolve(grids: Tensor, kernels: Tensor) -> Tensor:
    """Convolve every sample with its own kernel, channel by channel, zeros outside.

    Args:
        grids: ``[B, C, S, S]``.
        kernels: ``[B, C, 2S - 1, 2S - 1]``; the middle entry is offset zero.

    Returns:
        ``[B, C, S, S]``.
    """
    side = grids.shape[-1]
    # a circular length of 2S - 1 suffices, because what wraps around falls outside the window; 2S is faster
    size = (2 * side, 2 * side)
    product = torch.fft.rfft2(grids, s=size) * torch.fft.rfft2(kernels, s=size)
    window = slice(side - 1, 2 * side - 1)
    circle: Tensor = torch.fft.irfft2(product, s=size)
    return circle[..., window, window]
