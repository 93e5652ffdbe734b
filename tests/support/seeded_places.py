"""Where the parts of the networks for seeded defects are.

Of those with blocks the second: nvSubquadratic's first block reads registers before any layer mixed them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

HYENA_KERNEL = "sequence_mixer.inner_mixer.mixer.global_conv.kernel"


def film(network: Any, name: str) -> Any:
    """The FiLM generator."""
    if name == "digits":
        return network.blocks[1].film
    if name == "nvsubquadratic":
        return kernel(network, name).film_generator
    if name == "diffusers-dit":
        return network.transformer_blocks[1].norm1
    return network.conditioner.film if name == "policy-unet" else network.blocks[1].adaLN_modulation


def kernel(network: Any, name: str) -> Any:
    """The network that FiLM modulates."""
    return network.blocks[1].mixer.kernel if name == "digits" else network.blocks[1].get_submodule(HYENA_KERNEL)


def readout(network: Any, name: str) -> Any:
    """The readout; DiT's embedding of steps, and that of diffusers' DiT of steps and classes."""
    if name == "diffusers-dit":
        return film(network, name).emb
    if name == "digits":
        return network.blocks[1].readout
    if name == "nvsubquadratic":
        return network.blocks[1].register_pooling
    return network.conditioner.readout if name == "policy-unet" else network.step_embedding


def last_layers(network: Any, name: str) -> list[nn.Linear]:
    """The generator's last layers."""
    found = film(network, name)
    if name == "policy-unet":
        return list(found.layers)
    if name == "diffusers-dit":
        return [found.linear]
    return [found[1] if name == "dit" else found.mlp[2]]


def fill(value: float, *tensors: Tensor) -> None:
    with torch.no_grad():
        for one in tensors:
            one.fill_(value)
