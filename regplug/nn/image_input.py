"""From a Pillow image to a backbone's input, with Pillow and torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regplug.registry.image_preprocess import ImagePreprocess

if TYPE_CHECKING:
    from PIL.Image import Image

HIGH = 257  # a grey level of 16 bits divided by this is one of 8


def apply_preprocess(image: Image, how: ImagePreprocess) -> Tensor:
    """The input ``[C, H, W]`` in float32: converted, resized, cropped in the centre and normalised.

    Sizes are rounded as torchvision's ``Resize`` and ``CenterCrop`` do, and as timm does for inputs that are no square.

    Raises:
        ValueError: The image has grey levels of 32 bits.
    """
    pixels = _cropped(_resized(_converted(image, len(how.mean)), how), how.size)
    values = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
    channels = values.view(how.size[0], how.size[1], len(how.mean)).permute(2, 0, 1)
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (how.mean, how.std))
    return (channels.to(torch.float32) * how.scale - mean) / std


def as_inputs(images: Tensor, tokens: nn.Module) -> Tensor:
    """Images ``[B, C, H, W]`` as a tokens module takes them: on its device, of its dtype, grey ones without a channel.

    Args:
        images: The images.
        tokens: The module; its ``input_shape`` says whether its images have a channel.
    """
    first = next(tokens.parameters(), None)
    if first is not None:
        images = images.to(first.device, first.dtype)
    is_flat = len(getattr(tokens, "input_shape", None) or ()) == images.ndim - 2
    return images.squeeze(1) if is_flat and images.shape[1] == 1 else images


def _converted(image: Image, channels: int) -> Image:
    if image.mode.startswith("I;16"):  # Pillow would cut levels above 255
        from PIL.Image import fromarray

        image = fromarray((_levels(image) // HIGH).astype("uint8"))
    elif image.mode in ("I", "F"):
        raise ValueError(f"grey levels of 32 bits (mode {image.mode}), whose range is not known; save 8 or 16 bits")
    return image.convert("RGB" if channels == 3 else "L")


def _levels(image: Image) -> Any:
    import numpy

    return numpy.asarray(image)


def _resized(image: Image, how: ImagePreprocess) -> Image:
    width, height = image.size
    tall, wide = how.resized
    if how.fit == "crop" and tall == wide:  # the shorter side is exact, the longer one is rounded down
        short = min(width, height)
        tall, wide = int(tall * height / short), int(wide * width / short)
    elif how.fit == "crop":
        factor = max(tall / height, wide / width)
        tall, wide = round(height * factor), round(width * factor)
    if (width, height) == (wide, tall):
        return image
    from PIL.Image import Resampling

    return image.resize((wide, tall), Resampling[how.interpolation.upper()])


def _cropped(image: Image, size: tuple[int, int]) -> Image:
    left, top = (round((have - want) / 2) for have, want in zip(image.size, reversed(size), strict=True))
    return image.crop((left, top, left + size[1], top + size[0]))
