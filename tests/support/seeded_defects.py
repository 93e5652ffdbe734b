"""Defects of conditioning, each as a small change of a real network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.policy_unet import ResidualBlock
from support.seeded_places import fill, film, kernel, last_layers, readout
from support.small_dit import DiT, DiTBlock, modulate

# what a defect does to a network, in place
Harm = Callable[[Any], None]


def each(change: Callable[[Any, str], None], *names: str) -> dict[str, Harm]:
    """The same change for several architectures."""
    return {name: lambda network, name=name: change(network, name) for name in names}


EVERY = ("digits", "nvsubquadratic", "policy-unet", "dit")
WITH_DIFFUSERS = (*EVERY, "diffusers-dit")
WITH_READOUT = ("digits", "nvsubquadratic", "policy-unet")


# ---- as the network starts


class WipingBlock(DiTBlock):
    """``tokens * gamma + beta`` on the stream itself, with gamma and beta 0 at first, as in vit-pytorch's FiLM."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        beta, gamma, *_ = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x * gamma.unsqueeze(1) + beta.unsqueeze(1)
        return x + self.mlp(self.norm2(x))


class NoWayAround(nn.Module):
    def forward(self, sample: Tensor) -> Tensor:
        return torch.zeros(())


def wipe_policy(network: Any) -> None:
    for layer in last_layers(network, "policy-unet"):
        fill(0, layer.weight, layer.bias)
    for part in network.modules():
        if isinstance(part, ResidualBlock):
            part.around = NoWayAround()


def wipe_dit(network: DiT) -> None:
    network.blocks[1].__class__ = WipingBlock


def double_zero(network: Any, name: str) -> None:
    for layer in last_layers(network, name):
        fill(0, layer.weight, layer.bias)
    if name == "dit":
        block = network.blocks[1]
        fill(0, block.attn.out.weight, block.attn.out.bias, block.mlp[2].weight, block.mlp[2].bias)
    elif name == "policy-unet":
        for part in network.modules():
            if isinstance(part, ResidualBlock):
                fill(0, part.second[0].weight)
    else:
        fill(0, (kernel(network, name).out if name == "digits" else kernel(network, name).out_linear).weight)


# ---- in a trained network


def ignore_conditioning(network: Any, name: str) -> None:
    """The generator's first layers get 0 times their input, as with a guidance weight that is left at 0."""
    found = film(network, name)
    first = {
        "policy-unet": lambda: found.layers,
        "dit": lambda: [found[0]],
        "diffusers-dit": lambda: [found.silu],
    }.get(name, lambda: [found.mlp[0]])
    for layer in first():
        layer.register_forward_pre_hook(lambda _, given: (given[0] * 0,))


def zero_last_layer(network: Any, name: str) -> None:
    for layer in last_layers(network, name):
        fill(0, layer.weight)


def constant_vector(network: Any, name: str) -> None:
    """The readout's vector is always the same, as with an observation that is never filled in."""
    if name == "dit":
        network.step_embedding.register_forward_hook(lambda _, __, output: output * 0)
        network.class_embedding.register_forward_pre_hook(lambda _, given: (given[0] * 0,))
    else:
        readout(network, name).register_forward_hook(lambda _, __, output: output * 0 + 0.1)


class FirstBatch:
    """Returns what it saw first, as a cache without a key does."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None

    def __call__(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        if self.kept is None or self.kept.shape != output.shape:
            self.kept = output.detach().clone()
        return self.kept + 0 * output


def cached_vector(network: Any, name: str) -> None:
    readout(network, name).register_forward_hook(FirstBatch())
    if name == "dit":
        network.class_embedding.register_forward_hook(FirstBatch())


def shift_reading(network: Any, name: str, by: int) -> None:
    if name == "digits":
        select = network.blocks[1].select
        select.start += by
    elif name == "nvsubquadratic":
        network.blocks[1].register_start_idx += by
    else:
        network.conditioner.select.start += by


def detach(network: Any, name: str) -> None:
    readout(network, name).register_forward_hook(lambda _, __, output: output.detach())
    if name == "dit":
        network.class_embedding.register_forward_hook(lambda _, __, output: output.detach())


class OverPlaces(nn.Module):
    """An instance norm over all axes between the first and the last, channels last."""

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.flatten(1, -2).transpose(1, 2)
        return F.instance_norm(flat).transpose(1, 2).reshape(hidden.shape)


def normalise_behind(network: Any, name: str) -> None:
    if name == "digits":
        kernel(network, name).layers[1] = nn.Sequential(OverPlaces(), kernel(network, name).layers[1])
    elif name == "nvsubquadratic":
        kernel(network, name).out_linear = nn.Sequential(OverPlaces(), kernel(network, name).out_linear)
    elif name == "policy-unet":
        block = network.unet.middle[0]
        block.second = nn.Sequential(nn.InstanceNorm1d(block.second[0].in_channels), *block.second)
    elif name == "dit":
        block = network.blocks[1]
        block.attn = nn.Sequential(OverPlaces(), block.attn)
    else:
        network.transformer_blocks[1].attn1.register_forward_pre_hook(
            lambda _, given: (OverPlaces()(given[0]), *given[1:])
        )


def reset_generator(network: Any, name: str) -> None:
    """The layers get the values that torch draws, as after ``load_state_dict(strict=False)`` with other names."""
    found = film(network, name)
    layers = found.layers if name == "policy-unet" else [found.mlp[0]]
    torch.manual_seed(5)
    for layer in layers:
        layer.reset_parameters()


class Turned(nn.Module):
    """Passes the generator's pairs on in another way."""

    def __init__(self, generator: Any, turn: Callable[[list[Any]], list[Any]]) -> None:
        super().__init__()
        self.generator, self.turn = generator, turn
        self.num_film_layers = getattr(generator, "num_film_layers", 0)

    def forward(self, conditioning: Tensor) -> list[Any]:
        return self.turn(self.generator(conditioning))


def exchanged(pairs: list[Any]) -> list[Any]:
    return [(beta, gamma) for gamma, beta in pairs]


def first_for_all(pairs: list[Any]) -> list[Any]:
    """Each layer takes the pair of the first layer of its width."""
    return [next(one for one in pairs if one[0].shape == pair[0].shape) for pair in pairs]


def turn(network: Any, name: str, how: Callable[[list[Any]], list[Any]]) -> None:
    turned = Turned(film(network, name), how)
    if name == "digits":
        network.blocks[1].film = turned
    elif name == "nvsubquadratic":
        kernel(network, name).film_generator = turned
    else:
        network.conditioner.film = turned


class SharedPairs(DiTBlock):
    """The MLP takes the attention's shift and scale."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate_msa, _, _, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_msa.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift, scale))
        return x + gate_mlp.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift, scale))


def share_pairs_of_dit(network: DiT) -> None:
    network.blocks[1].__class__ = SharedPairs


class TooLarge(nn.Module):
    """A bounded function of numbers far beyond its bound."""

    def forward(self, numbers: Tensor) -> Tensor:
        return torch.tanh(1e6 * numbers)


def saturate(network: Any, name: str) -> None:
    found = film(network, name)
    if name == "policy-unet":
        found.layers[4] = nn.Sequential(found.layers[4], TooLarge())
    elif name == "dit":
        found.append(TooLarge())
    elif name == "diffusers-dit":
        found.linear = nn.Sequential(found.linear, TooLarge())
    else:
        found.mlp[2] = nn.Sequential(found.mlp[2], TooLarge())


def mix_samples(network: Any, name: str) -> None:
    """Each sample gets its neighbour's vector, as after a wrong reshape."""
    readout(network, name).register_forward_hook(lambda _, __, output: output.roll(1, 0))


def disconnect(network: Any, name: str) -> None:
    """What is modulated goes nowhere."""
    if name == "digits":
        fill(0, network.blocks[1].mixer.out.weight)
    elif name == "nvsubquadratic":
        fill(0, *network.blocks[1].ls_attn.parameters())
    elif name == "policy-unet":
        for part in network.modules():
            if isinstance(part, ResidualBlock):
                part.second[-1] = nn.Threshold(1e9, 0.0)
    elif name == "dit":
        block = network.blocks[1]
        fill(0, block.attn.out.weight, block.attn.out.bias, block.mlp[2].weight, block.mlp[2].bias)
    else:
        block = network.transformer_blocks[1]
        fill(0, *block.attn1.to_out[0].parameters(), *block.ff.net[2].parameters())


def overflow(network: Any, name: str) -> None:
    layer = last_layers(network, name)[0]
    with torch.no_grad():
        layer.bias[0] = float("inf")


DEFECTS: Mapping[str, Mapping[str, Harm]] = {
    "features-wiped": {"policy-unet": wipe_policy, "dit": wipe_dit},
    "double-zero": each(double_zero, *EVERY),
    "constant-pairs": each(ignore_conditioning, *WITH_DIFFUSERS),
    "zero-last-layer": each(zero_last_layer, *WITH_DIFFUSERS),
    "constant-conditioning": each(constant_vector, *EVERY),
    "stale-conditioning": each(cached_vector, *EVERY),
    "reads-padding": {
        "nvsubquadratic": lambda network: shift_reading(network, "nvsubquadratic", 2),
        "policy-unet": lambda network: shift_reading(network, "policy-unet", 12),
    },
    "reads-wrong-tokens": each(lambda network, name: shift_reading(network, name, -1), *WITH_READOUT),
    "conditioning-detached": each(detach, *EVERY),
    "undone-by-norm": each(normalise_behind, *WITH_DIFFUSERS),
    "never-loaded": each(reset_generator, *WITH_READOUT),
    "swapped-pair": each(lambda network, name: turn(network, name, exchanged), "digits", "nvsubquadratic"),
    "pairs-unused": {
        **each(lambda network, name: turn(network, name, first_for_all), *WITH_READOUT),
        "dit": share_pairs_of_dit,
    },
    "saturated": each(saturate, *WITH_DIFFUSERS),
    "batch-mixed": each(mix_samples, *WITH_DIFFUSERS),
    "no-effect": each(disconnect, *WITH_DIFFUSERS),
    "not-finite": each(overflow, *WITH_DIFFUSERS),
}
AT_START = ("features-wiped", "double-zero")
