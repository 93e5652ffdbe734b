"""Networks for seeded defects: each as it starts, and trained, with one batch of inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from nvsubquadratic.lazy_config import instantiate
from torch import Tensor, nn

import regplug
from regplug_digits import load_pretrained
from regplug_digits.data import load
from regplug_digits.model import DigitsViT
from regplug_nvsubquadratic.shipped import Configuration, network_config
from support.plugins import installed_with
from support.policy_unet import ENTRY, NAME, ConditionalUNet
from support.readouts import moved
from support.small_dit import DiT, dit_inputs

BATCH = 16
R, D, TOKENS, PADDING = 4, 24, 17, 6
LAYOUT = regplug.TokenLayout(num_registers=R, hidden_dim=D, start=1)
# its registers are not last: two tokens of padding follow, as the network needs rows of four
HYENA = Configuration(5, "cls", "HH", 3, 6, hidden_dim=24, image_size=64)


class PolicyNet(nn.Module):
    """The diffusion policy's U-Net, conditioned on registers that a small encoder made of each token."""

    def __init__(self) -> None:
        super().__init__()
        spec = regplug.resolve("compress-concat", num_registers=R, hidden_dim=D, compressed_dim=8)
        registry = installed_with(ENTRY, distribution="acme-policy")
        film = regplug.pair(spec, NAME, registry=registry)
        self.encoder = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D), nn.LayerNorm(D))
        self.conditioner = regplug.Conditioner(LAYOUT, spec.build(), film, registry=registry)
        self.unet = ConditionalUNet(3)

    def forward(self, actions: Tensor, tokens: Tensor) -> Tensor:
        noise: Tensor = self.unet(actions, self.conditioner(self.encoder(tokens)))
        return noise


def policy_inputs() -> dict[str, Tensor]:
    """Noisy actions, and tokens ``[CLS, REG, patches, PAD]``."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(BATCH, TOKENS, D, generator=generator)
    tokens[:, -PADDING:] = 0
    return {"actions": torch.randn(BATCH, 8, 3, generator=generator), "tokens": tokens}


@dataclass(frozen=True)
class Architecture:
    """A network in two states.

    Args:
        start: Builds it as it starts.
        trained: Builds it trained, or moved from its start as training moves it.
        inputs: One batch.
        layout: Where its registers sit, if its plugin does not say so.
        is_tried: Whether inputs that fit are found by trying.
    """

    start: Callable[[], nn.Module]
    trained: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    layout: regplug.TokenLayout | None = None
    is_tried: bool = True


def _seeded(build: Callable[[], nn.Module], scale: float = 0.0) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        torch.manual_seed(0)
        network = build().eval()
        return moved(network, scale) if scale else network

    return made


def _hyena() -> nn.Module:
    network: nn.Module = instantiate(network_config(HYENA))
    return network


def _diffusers() -> nn.Module:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 2, "num_layers": 2, "sample_size": 4}
    network: nn.Module = DiTTransformer2DModel(**sizes, patch_size=2, num_embeds_ada_norm=10, norm_num_groups=2)
    return network


def _latents() -> dict[str, Tensor]:
    numbers = torch.randn(BATCH, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    return {"hidden_states": numbers, "timestep": torch.arange(BATCH), "class_labels": torch.arange(BATCH) % 10}


def _images() -> dict[str, Tensor]:
    return {"input": torch.randn(BATCH, 64, 64, 3, generator=torch.Generator().manual_seed(1))}


ARCHITECTURES = {
    "digits": Architecture(_seeded(DigitsViT), load_pretrained, lambda: load()[1].images[:BATCH]),
    "nvsubquadratic": Architecture(_seeded(_hyena), _seeded(_hyena, 0.1), _images),
    "policy-unet": Architecture(_seeded(PolicyNet), _seeded(PolicyNet, 0.1), policy_inputs, LAYOUT),
    "dit": Architecture(_seeded(DiT), _seeded(DiT, 0.1), dit_inputs),
    "diffusers-dit": Architecture(_seeded(_diffusers), _seeded(_diffusers, 0.1), _latents, is_tried=False),
}
