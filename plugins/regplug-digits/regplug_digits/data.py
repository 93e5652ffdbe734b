"""scikit-learn's handwritten digits, with a test part that never changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.neighbors import KNeighborsClassifier  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from .preprocessing import MEAN, SIDE, STD

NUM_CLASSES = 10
BACKGROUND = -MEAN / STD
# numpy promises that the stream of the legacy RandomState never changes, so the split does not either.
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Normalised images ``[N, 8, 8]`` and their labels ``[N]``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose the same fifth of every class for testing, always.

    Args:
        labels: Class of every image, ``[N]``.

    Returns:
        Sorted indices of the training part and of the test part.
    """
    shuffled = np.random.RandomState(_SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    test = np.sort(by_class[::5])
    return np.setdiff1d(np.arange(len(labels)), test), test


def normalise(images: Tensor) -> Tensor:
    """Bring grey levels 0 to 16 to mean 0 and deviation 1, by the training part's figures."""
    return (images / 16.0 - MEAN) / STD


def load() -> tuple[Digits, Digits]:
    """Read the images that scikit-learn ships.

    Returns:
        The training part (1,437 images) and the held-out fifth (360 images).
    """
    raw = load_digits()
    images = normalise(torch.tensor(raw.images, dtype=torch.float32))
    labels = torch.tensor(raw.target, dtype=torch.long)
    train, test = (torch.from_numpy(part) for part in split_indices(raw.target))
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])


def plain_accuracies() -> dict[str, float]:
    """Accuracy of two plain methods on the held-out fifth, in percent, as a baseline."""
    raw = load_digits()
    pixels = raw.data / 16.0
    train, test = split_indices(raw.target)
    methods = {
        "logistic regression": LogisticRegression(max_iter=1000),
        "3 nearest neighbours": KNeighborsClassifier(n_neighbors=3),
    }
    return {
        name: 100 * float(method.fit(pixels[train], raw.target[train]).score(pixels[test], raw.target[test]))
        for name, method in methods.items()
    }


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale, shear, shift and bend seven images in ten a little, each differently.

    The rest stay unchanged: at 8x8 every resampling blurs, and test images are not blurred. Cubic resampling blurs less
    than linear. More than about 10 degrees or one pixel makes unrealistic digits.

    Args:
        images: Normalised images, ``[B, 8, 8]``.
        generator: Source of every random number used here.

    Returns:
        As many images; pixels from outside are background.
    """
    count = len(images)
    turn, shear, zoom_y, zoom_x, shift_y, shift_x = 2 * torch.rand(6, count, generator=generator) - 1
    turn, shear = 0.17 * turn, 0.15 * shear
    zoom_y, zoom_x = 1 + 0.1 * zoom_y, 1 + 0.1 * zoom_x
    shift_y, shift_x = 0.25 * shift_y, 0.25 * shift_x  # the image spans 2 units: 0.25 is one pixel
    rows = [
        torch.stack([zoom_x * turn.cos(), shear - turn.sin(), shift_x], dim=1),
        torch.stack([turn.sin(), zoom_y * turn.cos(), shift_y], dim=1),
    ]
    bends = 0.1 * (2 * torch.rand(count, 2, 3, 3, generator=generator) - 1)
    grid = F.affine_grid(torch.stack(rows, dim=1), [count, 1, SIDE, SIDE], align_corners=False)
    grid = grid + F.interpolate(bends, size=(SIDE, SIDE), mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
    ink = (images - BACKGROUND).unsqueeze(1)
    moved = F.grid_sample(ink, grid, mode="bicubic", align_corners=False).squeeze(1)
    moved = moved.clamp(0.0, 1.0 / STD) + BACKGROUND  # cubic resampling overshoots the range of ink
    kept = torch.rand(count, generator=generator) < 0.3
    return torch.where(kept[:, None, None], images, moved)
