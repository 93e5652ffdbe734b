"""Decodes image files with Pillow."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from regplug.commands.extras import import_extra
from regplug.commands.rank.reading.source import Picture
from regplug.errors import SpecError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image


def decode(picture: Picture) -> Image:
    """The image, decoded. Orientation in EXIF data is ignored, as torchvision's ImageFolder does.

    Raises:
        SpecError: Pillow is not installed; or the file is broken, is no image, or has more pixels than Pillow's limit.
    """
    pillow = import_extra("images", "PIL.Image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, and of half of its limit of pixels
            image: Image
            with pillow.open(picture.open()) as image:
                image.load()
    except Exception as error:  # Pillow's decoders raise anything: SyntaxError, struct.error, ...
        raise SpecError(
            f"{picture.owner}: expected an image that Pillow reads, got {one_line(error)}; repair or remove it."
        ) from error
    return image
