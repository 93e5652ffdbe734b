"""A diffusion policy's conditional U-Net, small, from its published description.

Chi et al., 2023 (arXiv:2303.04137), section 3 and appendix: a 1-D convolutional U-Net over a sequence of actions, whose
residual blocks apply FiLM, ``gamma * h + beta``, from one vector: what the encoder read of the images, the robot's
state, and the embedded step of the diffusion.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regplug

WIDTHS = (8, 16)  # of each resolution
NAME = "policy-film"


def block_widths(widths: tuple[int, ...] = WIDTHS) -> list[int]:
    """The width of every residual block, in the order in which they run."""
    down = [width for width in widths for _ in range(2)]
    up = [width for width in reversed(widths[:-1]) for _ in range(2)]
    return [*down, widths[-1], widths[-1], *up]


class PolicyFiLM(nn.Module):
    """One linear layer for each residual block, after one Mish: the pairs of all blocks, each of its block's width."""

    def __init__(self, global_cond_dim: int, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.global_cond_dim = global_cond_dim
        self.layers = nn.ModuleList(nn.Linear(global_cond_dim, 2 * width) for width in block_widths(widths))

    def forward(self, global_cond: Tensor) -> list[tuple[Tensor, Tensor]]:
        shared = F.mish(global_cond)
        pairs: list[tuple[Tensor, Tensor]] = []
        for layer in self.layers:
            gamma, beta = layer(shared).chunk(2, dim=-1)
            pairs.append((gamma, beta))
        return pairs


ENTRY = regplug.FiLMEntry(NAME, PolicyFiLM, width="global_cond_dim", form="gamma", order="gamma-first")


class ConvBlock(nn.Sequential):
    """Convolution, group norm, Mish."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(nn.Conv1d(channels, width, 5, padding=2), nn.GroupNorm(4, width), nn.Mish())


class ResidualBlock(nn.Module):
    """Two blocks with FiLM between them, and a way around both."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, width)
        self.second = ConvBlock(width, width)
        self.around = nn.Conv1d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, sample: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        gamma, beta = pair
        modulated = gamma.unsqueeze(-1) * self.first(sample) + beta.unsqueeze(-1)
        return self.second(modulated) + self.around(sample)


class ConditionalUNet(nn.Module):
    """Noisy actions ``[B, horizon, action_dim]`` and the pairs of all blocks -> the noise, of the same shape."""

    def __init__(self, action_dim: int, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        inputs = [action_dim, *widths[:-1]]
        self.down = nn.ModuleList(
            nn.ModuleList([ResidualBlock(before, after), ResidualBlock(after, after)])
            for before, after in zip(inputs, widths, strict=True)
        )
        self.shrink = nn.ModuleList(nn.Conv1d(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.middle = nn.ModuleList(ResidualBlock(widths[-1], widths[-1]) for _ in range(2))
        self.grow = nn.ModuleList(
            nn.ConvTranspose1d(wide, wide, 4, stride=2, padding=1) for wide in reversed(widths[1:])
        )
        self.up = nn.ModuleList(
            nn.ModuleList([ResidualBlock(wide + narrow, narrow), ResidualBlock(narrow, narrow)])
            for wide, narrow in zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True)
        )
        self.last = nn.Sequential(ConvBlock(widths[0], widths[0]), nn.Conv1d(widths[0], action_dim, 1))

    def forward(self, actions: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        rest = iter(pairs)
        sample, kept = actions.transpose(1, 2), []
        for level, blocks in enumerate(self.down):
            for block in blocks:
                sample = block(sample, next(rest))
            if level < len(self.shrink):
                kept.append(sample)
                sample = self.shrink[level](sample)
        for block in self.middle:
            sample = block(sample, next(rest))
        for grow, blocks in zip(self.grow, self.up, strict=True):
            sample = torch.cat([grow(sample), kept.pop()], dim=1)
            for block in blocks:
                sample = block(sample, next(rest))
        if next(rest, None) is not None:
            raise ValueError("expected one pair for each block, got more")
        return self.last(sample).transpose(1, 2)


class Policy(nn.Module):
    """The whole forward: tokens, state and time -> pairs -> the U-Net."""

    def __init__(self, conditioner: nn.Module, action_dim: int) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.unet = ConditionalUNet(action_dim)

    def forward(self, actions: Tensor, tokens: Tensor, state: Tensor, time: Tensor) -> Tensor:
        pairs = self.conditioner(tokens, None, {"state": state, "time": time})
        noise: Tensor = self.unet(actions, pairs)
        return noise
