"""Small networks whose conditioning is a vector: one FiLM layer, two guided calls of it, AdaLN-Zero without blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLES, WIDTH, TOKENS = 64, 16, 5


class Vectors(nn.Module):
    """Features behind a norm, scaled by ``1 + gamma`` and shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(8, WIDTH), nn.LayerNorm(WIDTH)
        self.cond, self.film = nn.Sequential(nn.Linear(6, 12), nn.SiLU()), nn.Linear(12, 2 * WIDTH)
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 3))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        gamma, beta = self.film(self.vector(c)).chunk(2, dim=-1)
        return self.head((1 + gamma)[:, None] * self.norm(self.body(x)) + beta[:, None]).mean(1)

    def vector(self, c: Tensor) -> Tensor:
        return self.cond(c)


class Guided(nn.Module):
    """Classifier-free guidance: two calls of one network, one of them without conditioning."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Vectors()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        if self.training:
            return self.net(x, c * (torch.rand(len(c), 1) > 0.1))
        free = self.net(x, 0 * c)
        return free + 2 * (self.net(x, c) - free)


class Cached(Vectors):
    """Keeps its first batch's conditioning."""

    def vector(self, c: Tensor) -> Tensor:
        if not hasattr(self, "kept"):
            self.kept = self.cond(c).detach()
        return self.kept


class InlineAdaLN(nn.Module):
    """AdaLN-Zero written in one forward; its last layer starts at zero too.

    Args:
        has_way_around: Whether the gate leaves a way around it.
    """

    def __init__(self, has_way_around: bool = True) -> None:
        super().__init__()
        self.has_way_around = has_way_around
        self.body, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 8)
        self.cond = nn.Sequential(nn.Linear(6, 12), nn.SiLU())
        self.ada = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Linear(12, 3 * WIDTH)) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH)) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        for layer in (self.head, *(one[1] for one in self.ada)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        features, vector = self.body(x), self.cond(c)
        for ada, mlp in zip(self.ada, self.mlp, strict=True):
            shift, scale, gate = ada(vector)[:, None].chunk(3, dim=-1)
            change = gate * mlp(self.norm(features) * (1 + scale) + shift)
            features = features + change if self.has_way_around else change
        return self.head(features)


def vectors(batch: int = SAMPLES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, TOKENS, 8, generator=generator)[:batch]
    return {"x": x, "c": torch.randn(SAMPLES, 6, generator=generator)[:batch]}


def fitted(network: nn.Module, steps: int = 200) -> nn.Module:
    """The network, trained towards a target that depends on its conditioning."""
    given, optimizer = vectors(), torch.optim.AdamW(network.parameters(), lr=3e-3)
    target = given["x"].mean(1)[:, :1] * given["c"][:, :3] + given["c"][:, 3:]
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(network(**given), target).backward()
        optimizer.step()
    return network.eval()
