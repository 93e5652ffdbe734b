"""A tiny backbone that reads images of 8x8 pixels, and data for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import regplug
from support.plugins import installed_with

R, D, PATCHES = 2, 6, 4
BUILT: list[str | None] = []  # one for each model that was built off the meta device


class Pictures(nn.Module):
    """``[class token, 2 registers, 4 patches]`` of images ``[B, 3, 8, 8]``."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, D, 4, 4)
        self.prefix = nn.Parameter(torch.randn(1, 1 + R, D) * scale)
        self.mix = nn.Linear(D, D)
        self.dropout = nn.Dropout(0.5)  # shows whether the model is in eval mode

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch(images).flatten(2).mT
        prefix = self.prefix + patches.mean(1, keepdim=True)
        found: Tensor = self.dropout(self.mix(torch.cat([prefix, patches], 1)))
        return found


def build(name: str | None = None, /, scale: float = 1.0) -> Pictures:
    model = Pictures(scale)
    if not model.prefix.is_meta:
        BUILT.append(name)
    return model


def layout_of(model: Pictures) -> regplug.TokenLayout:
    groups = (regplug.TokenGroup("cls", 0, 1), regplug.TokenGroup("patches", 1 + R))
    return regplug.TokenLayout(num_registers=R, hidden_dim=D, start=1, normalized=False, groups=groups)


def tokens(model: Pictures, normalized: bool) -> nn.Module:
    return model


def preprocess(model: Pictures) -> regplug.ImagePreprocess:
    return regplug.ImagePreprocess((8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def entry(**fields: Any) -> regplug.BackboneEntry:
    given = {
        "build": build,
        "layout": layout_of,
        "tokens": tokens,
        "preprocess": preprocess,
        "classes": (f"{__name__}:Pictures",),
    }
    return regplug.BackboneEntry("pictures", **{**given, **fields})


def registry(**fields: Any) -> regplug.Registry:
    """What is installed, and the backbone ``pictures``."""
    return installed_with(entry(**fields))


def write_images(folder: Path, count: int = 36, classes: int = 3, side: int = 12) -> Path:
    """A folder for each class, with images of noise."""
    draw = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"class-{number % classes}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:04d}.png")
    return folder
