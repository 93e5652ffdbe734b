"""How an image file becomes a timm model's input, by the configuration that timm publishes with the weights."""

from __future__ import annotations

from typing import Any

from torch import nn

import regplug

from .reading import image_shape

# timm.data.resolve_data_config's own defaults; importing timm.data imports torchvision
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_FRACTION = 0.875
FITS = {"center": "crop", "squash": "squash"}


def preprocess(model: nn.Module) -> regplug.ImagePreprocess | None:
    """What ``create_transform(**resolve_model_data_config(model))`` does, at the size that this model takes.

    None for a model that no configuration came with, or whose images are padded (crop_mode ``"border"``).
    """
    published: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    fit = FITS.get(published.get("crop_mode") or "center")
    if not published or fit is None:
        return None
    channels, *size = (None if hasattr(model, "embeds") else image_shape(model)) or published["input_size"]
    mean, std = published.get("mean") or IMAGENET_MEAN, published.get("std") or IMAGENET_STD
    if channels == 1 and len(mean) == 3:  # grey levels: timm sums the first layer's weights over the colours
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    if channels != len(mean):
        return None
    return regplug.ImagePreprocess(
        size=(size[0], size[1]),
        mean=tuple(mean),
        std=tuple(std),
        interpolation=published.get("interpolation") or "bicubic",
        crop_fraction=published.get("crop_pct") or CROP_FRACTION,
        fit=fit,
    )
