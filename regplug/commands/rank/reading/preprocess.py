"""From an image file to a backbone's input, with Pillow and torch."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regplug.commands.extras import import_extra
from regplug.errors import SpecError, class_name, one_line
from regplug.registry.image_preprocess import ImagePreprocess
from regplug.registry.references import import_named_by_user, reference_of

if TYPE_CHECKING:
    from PIL.Image import Image

HIGH = 257  # a grey level of 16 bits divided by this is one of 8


@dataclass(frozen=True)
class Pipeline:
    """From a Pillow image to the input ``[C, H, W]``.

    Args:
        text: What it does, on one line, for reports and for the cache's key.
        function: The function.
    """

    text: str
    function: Callable[[Image], Tensor]

    def __call__(self, image: Image, owner: str) -> Tensor:
        """The input that an image becomes; ``owner`` names it in messages.

        Raises:
            SpecError: The function raises, or does not give a tensor ``[C, H, W]`` of floats.
        """
        try:
            found = self.function(image)
        except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise SpecError(f"{owner}: expected an image that can be read, got {one_line(error)}.") from error
        if not (isinstance(found, Tensor) and found.ndim == 3 and found.is_floating_point()):
            got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else class_name(found)
            raise SpecError(f"preprocessing of {owner}: expected a tensor [C, H, W] of floats, got {got}.")
        return found


def published_pipeline(how: ImagePreprocess) -> Pipeline:
    """The pipeline that a backbone's plugin states."""
    return Pipeline(str(how), lambda image: apply_preprocess(image, how))


def own_pipeline(preprocess: str | Callable[..., Any]) -> Pipeline:
    """The user's function, given as itself or as ``MODULE:FUNCTION``; its text has a digest of its source.

    Raises:
        SpecError: It cannot be imported.
    """
    if isinstance(preprocess, str):
        function = import_named_by_user("--preprocess", preprocess)
        name = preprocess
    else:
        function, name = preprocess, _name_of(preprocess)
    try:
        # of the whole file: the function may call others there
        source = Path(inspect.getsourcefile(inspect.unwrap(function)) or "").read_bytes()
    except (TypeError, OSError):  # an object, or a function without a file
        source = repr(function).encode()
    return Pipeline(f"{name} (sha256 {hashlib.sha256(source).hexdigest()[:16]})", function)


def _name_of(function: Callable[..., Any]) -> str:
    try:
        return reference_of(function)
    except AttributeError:
        return class_name(function)


def apply_preprocess(image: Image, how: ImagePreprocess) -> Tensor:
    """The input ``[C, H, W]`` in float32: converted, resized, cropped in the centre and normalised.

    Sizes are rounded as torchvision's ``Resize`` and ``CenterCrop`` do, and as timm does for inputs that are no square.
    """
    pixels = _cropped(_resized(_converted(image, len(how.mean)), how), how.size)
    values = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
    channels = values.view(how.size[0], how.size[1], len(how.mean)).permute(2, 0, 1)
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (how.mean, how.std))
    return (channels.to(torch.float32) * how.scale - mean) / std


def _converted(image: Image, channels: int) -> Image:
    if image.mode.startswith("I;16"):  # Pillow would cut levels above 255
        image = import_extra("images", "PIL.Image").fromarray((_levels(image) // HIGH).astype("uint8"))
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
    resampling = import_extra("images", "PIL.Image").Resampling[how.interpolation.upper()]
    return image.resize((wide, tall), resampling)


def _cropped(image: Image, size: tuple[int, int]) -> Image:
    left, top = (round((have - want) / 2) for have, want in zip(image.size, reversed(size), strict=True))
    return image.crop((left, top, left + size[1], top + size[0]))
