"""How an image file becomes an input of the digits network."""

from __future__ import annotations

import regplug

SIDE = 8
# Of the 1,437 training images: image / 16 has this mean and this deviation (a test recomputes them).
MEAN = 0.3054
STD = 0.3759


def preprocess(model: object) -> regplug.ImagePreprocess:
    """Grey levels of 8x8 pixels, normalised as the training images are; ink is bright."""
    return regplug.ImagePreprocess((SIDE, SIDE), (MEAN,), (STD,), interpolation="bilinear")
