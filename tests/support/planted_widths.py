"""Networks with one planted mistake in a FiLM width, each with the twin that is right.

Each class has ``right``: True builds the twin. At its own sizes (R=4, D=48, c=12) each of them runs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regplug

R, D, C = 4, 48, 12  # R * C == D, so that a mistake shows at other sizes only
TYPED = 48
WIDTH = 32  # of the features


def compressing(num_registers: int, hidden_dim: int, compressed_dim: int) -> nn.Module:
    sizes = {"num_registers": num_registers, "hidden_dim": hidden_dim}
    return regplug.create("compress-concat", **sizes, compressed_dim=compressed_dim)


def mean(num_registers: int, hidden_dim: int) -> nn.Module:
    return regplug.create("mean", num_registers=num_registers, hidden_dim=hidden_dim)


def modulate(features: Tensor, pair: Tensor) -> Tensor:
    scale, shift = pair.unsqueeze(1).chunk(2, dim=-1)
    return features * (1 + scale) + shift


class Wording(nn.Module):
    """FiLM with ``cond_dim`` in the constructor, and no attribute of it."""

    def __init__(self, cond_dim: int, width: int = WIDTH) -> None:
        super().__init__()
        self.net = nn.Linear(cond_dim, 2 * width)

    def forward(self, features: Tensor, c: Tensor) -> Tensor:
        return modulate(features, self.net(c))


class Nameless(nn.Module):
    """FiLM of no known family, without a known name in the constructor."""

    def __init__(self, n: int, width: int = WIDTH) -> None:
        super().__init__()
        self.to_scale, self.to_shift = nn.Linear(n, width), nn.Linear(n, width)

    def forward(self, c: Tensor, features: Tensor) -> Tensor:
        return torch.addcmul(self.to_shift(c)[:, None], features, self.to_scale(c)[:, None])


class Backbone(nn.Module):
    """Tokens ``[B, T, D]`` -> features ``[B, T, WIDTH]`` and registers ``[B, R, D]``, which are last."""

    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__()
        self.num_registers = num_registers
        self.mix = nn.TransformerEncoderLayer(hidden_dim, 4, 2 * hidden_dim, batch_first=True)
        self.project = nn.Linear(hidden_dim, WIDTH)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.mix(tokens)
        return self.project(tokens[:, : -self.num_registers]), tokens[:, -self.num_registers :]


class OfAWording(nn.Module):
    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C, right: bool = False):
        super().__init__()
        self.backbone = Backbone(num_registers, hidden_dim)
        self.readout = compressing(num_registers, hidden_dim, compressed_dim)
        self.film = Wording(num_registers * compressed_dim if right else TYPED)

    def forward(self, tokens: Tensor) -> Tensor:
        features, registers = self.backbone(tokens)
        return self.film(features, self.readout(registers))


class OfANameless(OfAWording):
    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C, right: bool = False):
        super().__init__(num_registers, hidden_dim, compressed_dim)
        self.film = Nameless(num_registers * compressed_dim if right else hidden_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        features, registers = self.backbone(tokens)
        return self.film(self.readout(registers), features)


class OfALayer(OfAWording):
    """No FiLM module at all: a layer, and the modulation in the network's own forward."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C, right: bool = False):
        super().__init__(num_registers, hidden_dim, compressed_dim)
        del self.film
        self.to_film = nn.Linear(num_registers * compressed_dim if right else TYPED, 2 * WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        features, registers = self.backbone(tokens)
        return modulate(features, self.to_film(self.readout(registers)))


class OfVectors(OfAWording):
    """Features that are one vector per sample, as in an MLP policy."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C, right: bool = False):
        super().__init__(num_registers, hidden_dim, compressed_dim)
        del self.film
        self.hyper = nn.Sequential(nn.Linear(num_registers * compressed_dim if right else TYPED, 24), nn.SiLU())
        self.gain, self.body = nn.Linear(24, WIDTH), nn.Linear(7, WIDTH)

    def forward(self, state: Tensor, registers: Tensor) -> Tensor:
        hidden = self.hyper(self.readout(registers))
        return torch.relu(self.body(state) * self.gain(hidden))


class OfAnMLPBetween(OfAWording):
    """The MLP is hard-coded, the FiLM after it is right."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C, right: bool = False):
        super().__init__(num_registers, hidden_dim, compressed_dim)
        width = num_registers * compressed_dim if right else TYPED
        self.between = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.GELU(), nn.Linear(64, hidden_dim))
        self.film = Wording(hidden_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        features, registers = self.backbone(tokens)
        return self.film(features, self.between(self.readout(registers)))


class BehindAnMLP(OfAnMLPBetween):
    """The MLP follows, the FiLM after it is hard-coded."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C, right: bool = False):
        super().__init__(num_registers, hidden_dim, compressed_dim, right=True)
        self.film = Wording(hidden_dim if right else TYPED)


class Crossed(nn.Module):
    """Two readouts and two FiLMs; each FiLM gets the vector that is meant for the other."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C, right: bool = False):
        super().__init__()
        self.backbone = Backbone(num_registers, hidden_dim)
        self.local = compressing(num_registers, hidden_dim, compressed_dim)
        self.glob = mean(num_registers, hidden_dim)
        self.film_local, self.film_glob = Wording(num_registers * compressed_dim), Wording(hidden_dim)
        self.right = right

    def forward(self, tokens: Tensor) -> Tensor:
        features, registers = self.backbone(tokens)
        local, glob = self.local(registers), self.glob(registers)
        if not self.right:
            local, glob = glob, local
        return self.film_glob(self.film_local(features, local), glob)


class Averaged(nn.Module):
    """No readout: the forward averages the registers, and the FiLM expects them concatenated."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C, right: bool = False):
        super().__init__()
        self.backbone = Backbone(num_registers, hidden_dim)
        self.film = Nameless(hidden_dim if right else num_registers * compressed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        features, registers = self.backbone(tokens)
        return self.film(registers.mean(dim=1), features)


class FourRegisters(OfAWording):
    """The readout is made for four registers, however many the network has."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C, right: bool = False):
        super().__init__(num_registers, hidden_dim, compressed_dim)
        self.readout = compressing(num_registers if right else 4, hidden_dim, compressed_dim)
        self.film = Wording(num_registers * compressed_dim)


class Reshaped(OfAWording):
    """A reshape to a hard-coded width mixes the samples of a batch, and every layer fits."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C, right: bool = False):
        super().__init__(num_registers, hidden_dim, compressed_dim)
        self.width = num_registers * compressed_dim if right else TYPED
        self.film = Nameless(self.width)

    def forward(self, tokens: Tensor) -> Tensor:
        features, registers = self.backbone(tokens)
        conditioning = self.readout(registers).reshape(-1, self.width)
        return self.film(conditioning, features[: len(conditioning)])


class Guarded(OfAWording):
    """A generator that checks the width itself, and refuses."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C, right: bool = False):
        super().__init__(num_registers, hidden_dim, compressed_dim)
        self.film = regplug.KernelFiLMGenerator(num_registers * compressed_dim if right else hidden_dim, WIDTH, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        features, registers = self.backbone(tokens)
        [(gamma, beta)] = self.film(self.readout(registers))
        return gamma[:, None] * features + beta[:, None]


class RefusedWhenBuilt(nn.Module):
    """The constructor refuses the hard-coded width."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, right: bool = False) -> None:
        super().__init__()
        readout = compressing(num_registers, hidden_dim, C)
        film = regplug.KernelFiLMGenerator(num_registers * C if right else TYPED, WIDTH, 2)
        layout = regplug.TokenLayout(num_registers=num_registers, hidden_dim=hidden_dim, start=0)
        self.conditioner = regplug.Conditioner(layout, readout, film)

    def forward(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        return self.conditioner(tokens)


class Maps(nn.Module):
    """Feature maps ``[B, C, H, W]`` and a FiLM of 1x1 convolutions."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C, right: bool = False):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3)
        self.readout = compressing(num_registers, hidden_dim, compressed_dim)
        self.to_film = nn.Conv2d(num_registers * compressed_dim if right else TYPED, 2 * WIDTH, 1)

    def forward(self, image: Tensor, registers: Tensor) -> Tensor:
        scale, shift = self.to_film(self.readout(registers)[..., None, None]).chunk(2, dim=1)
        return self.stem(image) * scale + shift


class OneWrongBlock(nn.Module):
    """Three blocks, each with its readout and FiLM; the second is hard-coded."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C, right: bool = False):
        super().__init__()
        self.backbone = Backbone(num_registers, hidden_dim)
        self.readouts = nn.ModuleList(compressing(num_registers, hidden_dim, compressed_dim) for _ in range(3))
        width = num_registers * compressed_dim
        self.films = nn.ModuleList(Nameless(width if right or index != 1 else TYPED) for index in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        features, registers = self.backbone(tokens)
        for readout, film in zip(self.readouts, self.films, strict=True):
            features = film(readout(registers), features)
        return features


# ---- diffusion policy's conditional 1-D U-Net, from its published shape (Chi et al., 2023), as LeRobot has it


class StepEmbedding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.net = nn.Sequential(nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))

    def forward(self, step: Tensor) -> Tensor:
        rates = torch.exp(-9.21 * torch.arange(self.dim // 2, device=step.device) / (self.dim // 2 - 1))
        angles = step[:, None].float() * rates[None]
        return self.net(torch.cat([angles.sin(), angles.cos()], dim=-1))


class ResidualBlock(nn.Module):
    def __init__(self, inp: int, out: int, cond_dim: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(inp, out, 5, padding=2), nn.GroupNorm(4, out), nn.Mish())
        self.second = nn.Sequential(nn.Conv1d(out, out, 5, padding=2), nn.GroupNorm(4, out), nn.Mish())
        self.encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, 2 * out))
        self.skip = nn.Conv1d(inp, out, 1) if inp != out else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.encoder(cond).unsqueeze(-1).chunk(2, dim=1)
        return self.second(scale * self.first(x) + shift) + self.skip(x)


class UNet(nn.Module):
    def __init__(self, action_dim: int, global_cond_dim: int, step_dim: int = 16, widths: tuple[int, ...] = (16, 32)):
        super().__init__()
        self.step = StepEmbedding(step_dim)
        cond = step_dim + global_cond_dim
        pairs = [(action_dim, widths[0]), (widths[0], widths[1])]
        self.down = nn.ModuleList(
            nn.ModuleList([ResidualBlock(i, o, cond), ResidualBlock(o, o, cond), nn.Conv1d(o, o, 3, 2, 1)])
            for i, o in pairs
        )
        self.middle = nn.ModuleList([ResidualBlock(widths[1], widths[1], cond) for _ in range(2)])
        self.up = nn.ModuleList(
            nn.ModuleList([ResidualBlock(2 * o, i, cond), nn.ConvTranspose1d(i, i, 4, 2, 1)])
            for i, o in [(widths[0], widths[1]), (widths[0], widths[0])]
        )
        self.last = nn.Conv1d(widths[0], action_dim, 1)

    def forward(self, actions: Tensor, step: Tensor, global_cond: Tensor) -> Tensor:
        cond = torch.cat([self.step(step), global_cond], dim=-1)
        x, kept = actions.transpose(1, 2), []
        for first, second, smaller in self.down:
            x = second(first(x, cond), cond)
            kept.append(x)
            x = smaller(x)
        for block in self.middle:
            x = block(x, cond)
        for block, larger in self.up:
            x = F.interpolate(x, kept[-1].shape[-1])
            x = larger(block(torch.cat([x, kept.pop()], dim=1), cond))
        return self.last(F.interpolate(x, actions.shape[1])).transpose(1, 2)


class Policy(nn.Module):
    """State and registers of two cameras condition a U-Net, next to the step."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C, right: bool = False):
        super().__init__()
        self.readout = compressing(num_registers, hidden_dim, compressed_dim)
        images = 2 * num_registers * compressed_dim
        self.unet = UNet(7, global_cond_dim=14 + images if right else 14 + 2 * TYPED)

    def forward(self, actions: Tensor, step: Tensor, state: Tensor, registers: Tensor) -> Tensor:
        images = self.readout(registers).unflatten(0, (-1, 2)).flatten(1)
        return self.unet(actions, step, torch.cat([state, images], dim=-1))


def policy_inputs(num_registers: int, hidden_dim: int, batch_size: int) -> dict[str, Tensor]:
    return {
        "actions": torch.zeros(batch_size, 16, 7),
        "step": torch.zeros(batch_size, dtype=torch.int64),
        "state": torch.zeros(batch_size, 14),
        "registers": torch.zeros(2 * batch_size, num_registers, hidden_dim),
    }


# ---- DiT (Peebles & Xie, 2022): adaLN-zero


class DiTLayer(nn.Module):
    def __init__(self, hidden_dim: int, cond: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_dim, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(hidden_dim, elementwise_affine=False)
        self.attention = nn.MultiheadAttention(hidden_dim, 4, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_dim, 2 * hidden_dim), nn.GELU(), nn.Linear(2 * hidden_dim, hidden_dim)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(cond, 6 * hidden_dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=1)
        h = self.norm1(x) * (1 + scale1.unsqueeze(1)) + shift1.unsqueeze(1)
        x = x + gate1.unsqueeze(1) * self.attention(h, h, h)[0]
        return x + gate2.unsqueeze(1) * self.mlp(self.norm2(x) * (1 + scale2.unsqueeze(1)) + shift2.unsqueeze(1))


class DiT(nn.Module):
    """Step and class condition every layer; with ``reads``, the readout does too."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, step_dim: int = TYPED, reads: str = "") -> None:
        super().__init__()
        self.reads = reads
        self.patches, self.positions = nn.Linear(8, hidden_dim), nn.Parameter(torch.zeros(16, hidden_dim))
        self.step, self.label = StepEmbedding(step_dim), nn.Embedding(10, step_dim)
        self.layers = nn.ModuleList(DiTLayer(hidden_dim, step_dim) for _ in range(2))
        self.registers = nn.Parameter(torch.zeros(num_registers, hidden_dim))
        self.readout = compressing(num_registers, hidden_dim, C)
        self.num_registers = num_registers
        self.match = nn.Linear(num_registers * C, step_dim) if reads == "matched" else nn.Identity()

    def forward(self, latent: Tensor, step: Tensor, label: Tensor) -> Tensor:
        x = torch.cat([self.patches(latent) + self.positions, self.registers.expand(len(latent), -1, -1)], dim=1)
        c = self.step(step) + self.label(label)
        for layer in self.layers:
            x = layer(x, c + self.match(self.readout(x[:, -self.num_registers :])) if self.reads else c)
        return x


class Added(DiT):
    """The readout is added to the step's embedding, which happens to be as wide."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, right: bool = False) -> None:
        super().__init__(num_registers, hidden_dim, reads="matched" if right else "as it is")


class TimeAsWide(OfAWording):
    """Right: one FiLM is for a time embedding that is as wide as R*c, the other for the registers."""

    def __init__(self, num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C) -> None:
        super().__init__(num_registers, hidden_dim, compressed_dim, right=True)
        self.embed, self.time_film = StepEmbedding(TYPED), Wording(TYPED)

    def forward(self, tokens: Tensor, step: Tensor) -> Tensor:
        features, registers = self.backbone(tokens)
        return self.time_film(self.film(features, self.readout(registers)), self.embed(step))
