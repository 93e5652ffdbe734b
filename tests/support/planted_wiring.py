"""Paths from a readout to FiLM, each with one hard-coded width, or with ``right`` without it; see planted_widths."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from support.planted_widths import (
    WIDTH,
    Backbone,
    C,
    D,
    Nameless,
    R,
    StepEmbedding,
    Wording,
    compressing,
    mean,
    modulate,
)


class Wired(nn.Module):
    """A backbone, a readout, and a FiLM that each class defines; ``self.width`` is right or hard-coded."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C, right: bool = False):
        super().__init__()
        self.num_registers, self.hidden_dim, self.right = num_registers, hidden_dim, right
        self.backbone = Backbone(num_registers, hidden_dim)
        self.readout = compressing(num_registers, hidden_dim, compressed_dim)
        self.follows = num_registers * compressed_dim
        self.width = self.follows if right else D
        self.build()

    def build(self) -> None:
        self.film = Nameless(self.width)

    def forward(self, tokens: Tensor) -> Tensor:
        features, registers = self.backbone(tokens)
        return self.go(features, registers)

    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        return self.film(self.readout(registers), features)


class OfAView(Wired):
    def build(self) -> None:
        self.layer = nn.Linear(self.width, 2 * WIDTH)

    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        scale, shift = self.layer(self.readout(registers)).view(-1, 2, WIDTH).unbind(1)
        return features * scale[:, None] + shift[:, None]


class OfARawParameter(Wired):
    def build(self) -> None:
        self.weight = nn.Parameter(torch.zeros(self.width, WIDTH))

    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        return features * (self.readout(registers) @ self.weight)[:, None]


class OfAnEinsum(Wired):
    def build(self) -> None:
        self.weight = nn.Parameter(torch.zeros(2 * WIDTH, self.width))

    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        return modulate(features, torch.einsum("oc,bc->bo", self.weight, self.readout(registers)))


class OfATensordot(Wired):
    def build(self) -> None:
        self.weight = nn.Parameter(torch.zeros(self.width, WIDTH))

    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        return torch.einsum("btd,bd->btd", features, torch.tensordot(self.readout(registers), self.weight, dims=1))


class ByItsForward(Wired):
    """No hook of a module runs."""

    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        return self.film.forward(self.readout(registers), features)


class ByKeyword(Wired):
    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        return self.film(features=features, c=self.readout(registers))


class OfAShift(Wired):
    def build(self) -> None:
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(self.width, WIDTH))

    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        return features + self.embed(self.readout(registers)).unsqueeze(1)


class Sliced(Wired):
    """A hard-coded slice takes all of the vector at the network's own sizes, and a part of it at others."""

    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        return self.film(self.readout(registers)[:, : self.width], features)


class InTypedHalves(Wired):
    """Two slices with hard-coded bounds; the width that each takes is right at every size."""

    def build(self) -> None:
        self.films = nn.ModuleList(Nameless(self.half) for _ in range(2))

    @property
    def half(self) -> int:
        return self.width // 2

    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        c = self.readout(registers)
        last = c.shape[1] if self.right else 2 * self.half
        features = self.films[0](c[:, : self.half], features)
        return self.films[1](c[:, last - self.half : last], features)


class SplitInTypedParts(InTypedHalves):
    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        parts = self.readout(registers).split(self.half, dim=1)
        return self.films[1](parts[1], self.films[0](parts[0], features))


class Recurrent(Wired):
    def build(self) -> None:
        self.cell, self.film = nn.GRUCell(self.width, 20), Nameless(20)

    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        return self.film(self.cell(self.readout(registers)), features)


class Scripted(Wired):
    def build(self) -> None:
        self.film = torch.jit.script(Nameless(self.width))


class Compiled(Wired):
    def build(self) -> None:
        self.film = torch.compile(Nameless(self.width))


class InParallel(Wired):
    def build(self) -> None:
        self.film = nn.DataParallel(Nameless(self.width))


class Checkpointed(Wired):
    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        return checkpoint(self.film, self.readout(registers), features, use_reentrant=False)


class InOneSequence(Wired):
    """The readout is a layer of the module that makes the scale."""

    def build(self) -> None:
        self.conditioning = nn.Sequential(self.readout, nn.Linear(self.width, 2 * WIDTH))

    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        return modulate(features, self.conditioning(registers))


class JoinedWithTheStep(Wired):
    def build(self) -> None:
        self.step, self.film = StepEmbedding(16), Wording(self.width + 16)

    def forward(self, tokens: Tensor, step: Tensor) -> Tensor:
        features, registers = self.backbone(tokens)
        return self.film(features, torch.cat([self.readout(registers), self.step(step)], dim=-1))


class OfTwoReadouts(Wired):
    def build(self) -> None:
        self.other = mean(self.num_registers, self.hidden_dim)
        self.film = Nameless(self.follows + (self.hidden_dim if self.right else D))

    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        return self.film(torch.cat([self.readout(registers), self.other(registers)], dim=1), features)


class ForEachFrame(Wired):
    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        return self.film(self.readout(registers).repeat_interleave(3, 0), features.repeat_interleave(3, 0))


class ScaleRightShiftTyped(Wired):
    def build(self) -> None:
        self.film = Nameless(self.follows)
        self.film.to_shift = nn.Linear(self.width, WIDTH)


class WithLazyLayers(Wired):
    def build(self) -> None:
        self.film = Nameless(D)
        self.film.to_scale = nn.LazyLinear(WIDTH)
        self.film.to_shift = nn.LazyLinear(WIDTH) if self.right else nn.Linear(D, WIDTH)


class MLPLayer(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.body, self.film = nn.Linear(WIDTH, WIDTH), nn.Linear(n, 2 * WIDTH)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.film(c).chunk(2, dim=-1)
        return h + torch.relu(self.body(h) * (1 + scale) + shift)


class TwoMLPLayers(Wired):
    """Features are one vector per sample, in a residual stream."""

    def build(self) -> None:
        self.layers = nn.ModuleList(MLPLayer(self.width) for _ in range(2))

    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        h, c = features.mean(dim=1), self.readout(registers)
        for layer in self.layers:
            h = layer(h, c)
        return h


class NextToAnExcitation(Wired):
    """Squeeze-and-excitation scales features with themselves: that is no FiLM input."""

    def build(self) -> None:
        self.excite = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, WIDTH), nn.Sigmoid())
        self.film = Nameless(self.width)

    def go(self, features: Tensor, registers: Tensor) -> Tensor:
        return self.film(self.readout(registers), features * self.excite(features.mean(dim=1))[:, None])


class OfAClassToken(Wired):
    """Next to a right FiLM input, a hard-coded one for a vector that no readout gives."""

    def build(self) -> None:
        self.film = Nameless(self.follows)
        self.token_film = nn.Linear(self.hidden_dim if self.right else D, 2 * WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        features, registers = self.backbone(tokens)
        return modulate(self.go(features, registers), self.token_film(tokens[:, 0]))


class OfLatents(nn.Module):
    """Registers that read an image and are in no sequence; they are averaged in the forward."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, right: bool = False) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(num_registers, hidden_dim))
        self.keys, self.stem = nn.Conv2d(3, hidden_dim, 8, 8), nn.Conv2d(3, WIDTH, 8, 8)
        self.film = Nameless(hidden_dim if right else D)

    def forward(self, images: Tensor) -> Tensor:
        keys = self.keys(images).flatten(2).transpose(1, 2)
        registers = F.scaled_dot_product_attention(self.latents.expand(len(images), -1, -1), keys, keys)
        return self.film(registers.mean(dim=1), self.stem(images).flatten(2).transpose(1, 2))


KINDS = [*(one for one in Wired.__subclasses__() if one is not OfAClassToken), OfLatents, SplitInTypedParts]
