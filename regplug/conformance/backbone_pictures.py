"""The check of what a backbone's entry states of image files."""

from __future__ import annotations

import random
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regplug.conformance.backbone_subject import BackboneSubject
from regplug.conformance.check import Check, DoesNotApplyError
from regplug.errors import ConformanceError, with_class
from regplug.nn.backbone import ask_preprocess
from regplug.nn.image_input import apply_preprocess, as_inputs

if TYPE_CHECKING:
    from PIL.Image import Image

# mode and size (width, height) of the pictures that are tried: files of photos, icons, scans
PICTURES = (("RGB", (40, 30)), ("L", (30, 40)), ("RGBA", (33, 33)), ("P", (16, 9)), ("RGB", (1, 7)), ("L", (7, 1)))


def preprocess(subject: BackboneSubject) -> str:
    """Pictures of several modes and sizes become finite float32 inputs ``[C, H, W]``, which the model takes.

    ``regplug rank`` reads image files so. A size or a number of channels that the model does not take fails there only
    after the weights are loaded; a wrong mean or deviation is not noticed at all, so take them from where the weights
    were published.
    """
    if subject.entry.preprocess is None:
        raise DoesNotApplyError("its entry has no preprocess=, so image files are read with --preprocess only")
    how = ask_preprocess(subject.entry, subject.network)
    if how is None:
        raise DoesNotApplyError("its preprocess gives None for this model: nothing is known of image files")
    try:
        import_module("PIL.Image")
    except ImportError:
        raise DoesNotApplyError("Pillow is not installed; use pip install 'regplug[images]'") from None
    _ = subject.checked_inputs(1)
    wanted = [len(how.mean), *how.size]
    inputs = []
    for mode, size in PICTURES:
        found = apply_preprocess(_picture(mode, size), how)
        owner = f"preprocess: a picture {mode} {size[0]}x{size[1]}"
        if found.dtype != torch.float32 or list(found.shape) != wanted:
            raise ConformanceError(f"{owner}: expected torch.float32 {wanted}, got {found.dtype} {list(found.shape)}.")
        if not found.isfinite().all():
            raise ConformanceError(f"{owner}: expected finite numbers, got NaN or infinity; it is {how}.")
        inputs.append(found)
    _run(subject, torch.stack(inputs[:2]))
    return str(how)


def _run(subject: BackboneSubject, images: Tensor) -> None:
    tokens = subject.stated_tokens
    try:
        subject.read(tokens, as_inputs(images, tokens))
    except Exception as error:  # a model may raise anything for inputs of another size
        raise ConformanceError(
            f"preprocess: expected inputs that the model takes, got {list(images.shape[1:])}: {with_class(error)}"
        ) from error


def _picture(mode: str, size: tuple[int, int]) -> Image:
    """Noise, always the same; a palette's colours where the mode has one."""
    pillow = import_module("PIL.Image")
    values = random.Random(0).randbytes(3 * size[0] * size[1])
    picture: Image = pillow.frombytes("RGB", size, values).convert(mode)
    return picture


CHECKS: tuple[Check[BackboneSubject], ...] = (Check("preprocess", preprocess),)
