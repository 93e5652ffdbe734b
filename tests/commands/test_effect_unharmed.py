"""The effect raises no false alarm: on any strategy in digits, on the twins that audit calls right, on odd networks."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from support import planted_widths as planted
from support import planted_wiring as wiring
from support.readouts import moved
from torch import Tensor, nn
from torch.nn import functional as F

import regplug
from regplug.commands.audit.inputs import parse_inputs
from regplug_digits.data import load
from regplug_digits.model import DigitsViT

SIZES = {"num_registers": planted.R, "hidden_dim": planted.D, "compressed_dim": planted.C}
DIT = ["latent=B,16,8", "step=B", "label=B:int64"]
INPUTS: dict[Any, list[str]] = {
    planted.OfVectors: ["state=B,7", "registers=B,R,D"],
    planted.Maps: ["image=B,3,8,8", "registers=B,R,D"],
    planted.Added: DIT,
    planted.DiT: DIT,
    wiring.JoinedWithTheStep: ["tokens=B,R+16,D", "step=B"],
}
# plain gamma of 0 on the features themselves: what vit-pytorch's FiLM does, and a defect
WIPING = (wiring.OfARawParameter, wiring.OfATensordot)
# a function gives its inputs, forwards of other arguments, layers without weights
LEFT_OUT = (planted.Policy, wiring.OfLatents, wiring.WithLazyLayers)
TWINS = [
    one
    for module in (planted, wiring)
    for one in vars(module).values()
    if isinstance(one, type)
    and one.__module__ == module.__name__
    and "right" in inspect.signature(one.__init__).parameters
    and one not in LEFT_OUT
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("strategy", regplug.strategies())
def test_no_strategy_in_digits_is_called_broken(strategy):
    torch.manual_seed(0)
    try:
        network = DigitsViT(strategy)
    except regplug.SpecError as error:
        if "expected option" not in str(error) and "its constructor takes" not in str(error):
            raise
        pytest.skip("it has options without a default")
    report = regplug.effect(network, load()[1].images[:12])
    assert report.defects == ()
    assert {one.state for one in report.sites} == {"used"}
    assert [one.reads for one in report.readouts] == [(16, 17, 18, 19)] * 2


@pytest.mark.parametrize("is_moved", [False, True], ids=["start", "moved"])
@pytest.mark.parametrize("build", TWINS, ids=lambda build: build.__name__)
def test_no_twin_that_audit_calls_right_is_called_broken(build, is_moved):
    torch.manual_seed(0)
    network = build(right=True)
    if is_moved:
        moved(network, 0.1)
    made = parse_inputs(INPUTS.get(build, ["tokens=B,R+16,D"]), lambda text: None)
    report = regplug.effect(network, shapes=lambda sizes: made(SIZES))
    if build in WIPING and not is_moved:
        assert [(one.kind, one.grade) for one in report.defects] == [("features-wiped", "maybe")]
    else:
        assert report.defects == ()
        assert all(one.state in ("used", "at-start", "not-measured") for one in report.sites)


# ---- networks of other fields


class Instructed(nn.Module):
    """Convolutions with two layers of FiLM that start at 0, as in RT-1, before a group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.shift, self.scale = nn.Linear(4, 32), nn.Linear(4, 32)
        self.second, self.group, self.head = nn.Conv2d(32, 16, 3), nn.GroupNorm(4, 16), nn.Linear(16, 3)
        for layer in (self.shift, self.scale):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        hidden = F.relu(self.norm(self.first(image)))
        hidden = (1 + self.scale(text))[..., None, None] * hidden + self.shift(text)[..., None, None]
        return self.head(F.relu(self.group(self.second(hidden))).mean((2, 3)))


class Styled(nn.Module):
    """A constant image, and styles behind instance norms, as in StyleGAN."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(0.2), nn.Linear(8, 8))
        self.image = nn.Parameter(torch.randn(1, 16, 4, 4))
        self.styles = nn.ModuleList(nn.Linear(8, 32) for _ in range(3))
        self.layers = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))

    def forward(self, latent: Tensor) -> Tensor:
        style, hidden = self.mapping(latent), self.image.expand(len(latent), -1, -1, -1)
        for layer, styled in zip(self.layers, self.styles, strict=True):
            gamma, beta = styled(style)[..., None, None].chunk(2, dim=1)
            hidden = F.instance_norm(F.leaky_relu(layer(hidden), 0.2)) * (1 + gamma) + beta
        return hidden


class Guided(nn.Module):
    """Classifier-free guidance: the batch twice, with the condition and without, in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.film, self.head = nn.Linear(8, 16), nn.Linear(4, 32), nn.Linear(16, 3)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        both = torch.cat([state, torch.zeros_like(state)])
        gamma, beta = self.film(both)[:, None].chunk(2, dim=-1)
        with_it, without = self.head(self.body(torch.cat([x, x])) * (1 + gamma) + beta).chunk(2)
        return without + 2 * (with_it - without)


class Forever(nn.Module):
    """A layer that is called several times with another step each, as a sampler does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.film = nn.Linear(8, 8), nn.Linear(4, 16)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        for step in range(3):
            gamma, beta = self.film(state + step)[:, None].chunk(2, dim=-1)
            x = x + torch.tanh(self.body(x) * (1 + gamma) + beta)
        return x


def numbers(*shape: int) -> Tensor:
    return torch.randn(16, *shape, generator=torch.Generator().manual_seed(1))


ODD = {
    "RT-1": (Instructed, {"image": numbers(3, 8, 8), "text": numbers(4)}),
    "styles": (Styled, {"latent": numbers(8)}),
    "guidance": (Guided, {"x": numbers(5, 8), "state": numbers(4)}),
    "called three times": (Forever, {"x": numbers(5, 8), "state": numbers(4)}),
}


@pytest.mark.parametrize("scale", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", ODD)
def test_no_odd_network_is_called_broken(name, scale):
    build, inputs = ODD[name]
    torch.manual_seed(0)
    network = moved(build(), scale) if scale else build()
    report = regplug.effect(network, inputs)
    assert report.defects == ()
    assert {one.state for one in report.sites} == {"at-start" if name == "RT-1" and not scale else "used"}
