"""How an image file becomes a backbone's input, as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from regplug.errors import SpecError
from regplug.registry.integers import is_positive_int
from regplug.registry.untrusted_values import exact, repr_of

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
FITS = ("crop", "squash")


@dataclass(frozen=True)
class ImagePreprocess:
    """How an image file becomes a backbone's input ``[C, H, W]``.

    The image is converted to RGB, or to grey levels if there is one mean. It is resized with antialiasing, cropped in
    the centre, and its values become ``(value * scale - mean) / std``.

    Args:
        size: ``(H, W)`` of the input.
        mean: The mean of each channel, three or one, of scaled values.
        std: The standard deviation of each channel.
        interpolation: ``"bicubic"``, ``"bilinear"``, ``"lanczos"`` or ``"nearest"``.
        crop_fraction: The share of the resized image that the centre crop keeps, along the side that fits.
        scale: What values from 0 to 255 are multiplied by.
        fit: ``"crop"`` keeps the image's proportions; ``"squash"`` resizes both sides to the size.

    Raises:
        SpecError: A field has a value that cannot be used.

    Example:
        >>> ImagePreprocess((224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).resized
        (224, 224)
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_fraction: float = 1.0
    scale: float = 1 / 255
    fit: str = "crop"

    def __post_init__(self) -> None:
        size = self._tuple("size")
        if len(size) != 2 or not all(map(is_positive_int, size)):
            raise SpecError(f"ImagePreprocess: size: expected positive integers (H, W), got {repr_of(self.size)}.")
        for word in ("mean", "std"):
            numbers = self._tuple(word)
            if len(numbers) not in (1, 3) or not all(map(_is_number, numbers)) or (word == "std" and min(numbers) <= 0):
                wanted = "three numbers, or one for grey levels" + (", above 0" if word == "std" else "")
                raise SpecError(f"ImagePreprocess: {word}: expected {wanted}, got {repr_of(getattr(self, word))}.")
        if len(self.mean) != len(self.std):
            raise SpecError(f"ImagePreprocess: std: expected {len(self.mean)} numbers, as mean, got {len(self.std)}.")
        for word, known in (("interpolation", INTERPOLATIONS), ("fit", FITS)):
            value = getattr(self, word)
            if not (isinstance(value, str) and exact(value) in known):
                raise SpecError(f"ImagePreprocess: {word}: expected one of {', '.join(known)}, got {repr_of(value)}.")
            object.__setattr__(self, word, exact(value))
        if not (_is_number(self.crop_fraction) and 0 < self.crop_fraction <= 1):
            got = repr_of(self.crop_fraction)
            raise SpecError(f"ImagePreprocess: crop_fraction: expected more than 0 and at most 1, got {got}.")
        if not (_is_number(self.scale) and self.scale > 0):
            raise SpecError(f"ImagePreprocess: scale: expected a positive number, got {repr_of(self.scale)}.")

    def _tuple(self, word: str) -> tuple[int | float, ...]:
        value = getattr(self, word)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise SpecError(f"ImagePreprocess: {word}: expected a list of numbers, got {repr_of(value)}.")
        object.__setattr__(self, word, tuple(value))  # JSON gives a list
        return tuple(value)

    @property
    def resized(self) -> tuple[int, int]:
        """``(H, W)`` that the image is resized to, or to cover, before the crop."""
        height, width = (math.floor(side / self.crop_fraction) for side in self.size)
        return height, width

    def __str__(self) -> str:
        """One line for reports."""
        height, width = self.size
        colour = "RGB" if len(self.mean) == 3 else "grey"
        mean, std = (", ".join(f"{one:g}" for one in numbers) for numbers in (self.mean, self.std))
        keep = "" if self.crop_fraction == 1 else f", keeping {self.crop_fraction:g}"
        how = f"{self.fit} to {height}x{width}{keep}"
        return f"{colour}, {self.interpolation}, {how}, scale {self.scale:.6g}, mean ({mean}), std ({std})"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
