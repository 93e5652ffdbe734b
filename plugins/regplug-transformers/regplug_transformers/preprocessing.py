"""How an image file becomes the input of a transformers model, as its image processor does it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

import regplug

from .layouts import base_of

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
UNCHANGED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Published:
    """What an image processor does, besides the size, which is that of the model's configuration.

    Args:
        values: Mean and standard deviation of each channel.
        interpolation: How it resizes.
        crop_fraction: The share that its centre crop keeps.
        fit: ``"crop"`` or ``"squash"``.
    """

    values: tuple[tuple[float, ...], tuple[float, ...]]
    interpolation: str = "bilinear"
    crop_fraction: float = 1.0
    fit: str = "squash"


# The defaults of the families' image processors; importing those imports torchvision. DINOv2's is in its checkpoints'
# preprocessor_config.json: a BitImageProcessor, 256 and a crop of 224. RADIO normalises inside the model, and publishes
# no processor, so nothing is said of it.
PUBLISHED = {
    "dinov2_with_registers": Published(IMAGENET, "bicubic", 224 / 256, "crop"),
    "dinov3_vit": Published(IMAGENET),
    "sapiens2": Published(IMAGENET),
    "tipsv2_vision_model": Published(UNCHANGED),
}
DINOV2_TRAINED, DINOV2_SIZE = 518, 224  # it was trained last at 518, and its processor crops to 224


def preprocess(model: nn.Module) -> regplug.ImagePreprocess | None:
    """What the family's image processor does, at the model's image size; None where none is published.

    The processor resizes tensors and this resizes images of whole numbers: they differ by rounding.
    """
    base, family = base_of(model)
    known = PUBLISHED.get(family.model_type)
    if known is None or base.config.num_channels != 3:
        return None
    size = base.config.image_size
    if family.model_type == "dinov2_with_registers" and size == DINOV2_TRAINED:
        size = DINOV2_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    return regplug.ImagePreprocess(
        (height, width), *known.values, known.interpolation, known.crop_fraction, fit=known.fit
    )
