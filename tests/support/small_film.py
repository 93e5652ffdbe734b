"""A small network with one FiLM site; a test changes one of its methods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import regplug
from support.readouts import moved

B, WIDTH, PLACES = 16, 32, 6


class Film(nn.Module):
    """Features ``[B, N, WIDTH]``, scaled and shifted by a state; what each test changes is a method."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, WIDTH)
        self.film = nn.Linear(4, 2 * WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        gamma, beta = self.pair(self.film(self.condition(state)))
        return self.last(self.behind(self.body(x) * gamma[:, None] + beta[:, None]))

    def condition(self, state: Tensor) -> Tensor:
        return state

    def pair(self, numbers: Tensor) -> Any:
        gamma, beta = numbers.chunk(2, dim=-1)
        return 1 + gamma, beta

    def behind(self, features: Tensor) -> Tensor:
        return features

    def last(self, features: Tensor) -> Tensor:
        return self.head(features)


def made(build: Any = Film, scale: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    network = build().eval()
    return moved(network, scale) if scale else network


def inputs(batch: int = B) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(batch, PLACES, 8, generator=generator),
        "state": torch.randn(batch, 4, generator=generator),
    }


def only(report: regplug.EffectReport) -> Any:
    [site] = report.sites
    return site
