"""Encoded images in a column, as Hugging Face stores them, for a bundle with its backbone."""

from __future__ import annotations

import io
import json
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from regplug.commands.extras import import_extra
from regplug.commands.rank.reading.pictures import decode
from regplug.commands.rank.reading.preprocess import Pipeline, own_pipeline, published_pipeline
from regplug.commands.rank.reading.source import Picture
from regplug.errors import SpecError
from regplug.format.manifest import BackboneRecord, Manifest
from regplug.nn.backbone import ask_preprocess, build_backbone
from regplug.registry.default import default_registry
from regplug.registry.dtypes import torch_dtype
from regplug.registry.image_preprocess import ImagePreprocess


def is_encoded(column: Any) -> bool:
    """Whether a column holds image files, as binary or ``struct<bytes, path>``."""
    kind = getattr(column, "type", None)
    if kind is None or isinstance(column, Tensor):
        return False
    types = import_extra("run", "pyarrow").types
    return bool(types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind))


def images_of(owner: str, column: Any, manifest: Manifest, preprocess: str | None, first: int) -> Tensor:
    """Decoded images as the backbone's input ``[n, C, H, W]``.

    Args:
        owner: The column, for messages.
        column: An Arrow array of binary or ``struct<bytes, path>``.
        manifest: The bundle's manifest.
        preprocess: ``MODULE:FUNCTION``, or None for what the backbone's plugin says.
        first: The row of the first image, for messages.

    Raises:
        SpecError: An image is missing or broken, its input has another shape, or no preprocessing is known.
    """
    pipeline = _pipeline(manifest.backbone, preprocess)
    sizes = list(manifest.input.shape[1:])
    found = []
    for row, value in enumerate(column, first):
        picture = value.as_py()
        data = picture.get("bytes") if isinstance(picture, dict) else picture
        if data is None:
            raise SpecError(f"{owner}: row {row}: expected an encoded image, got none.")
        name = f"{owner}: row {row}"
        image = pipeline(decode(Picture(name, partial(io.BytesIO, data))), name)
        if len(sizes) == 2 and len(image) == 1:  # grey images of a network whose images have no channel
            image = image[0]
        if list(image.shape) != sizes:
            raise SpecError(f"{name}: expected an input {sizes}, got {list(image.shape)} from the preprocessing.")
        found.append(image)
    dtype = torch_dtype(manifest.input.dtype)
    return torch.stack(found).to(dtype) if found else torch.empty(0, *map(int, sizes), dtype=dtype)


def _pipeline(record: BackboneRecord | None, preprocess: str | None) -> Pipeline:
    if preprocess is not None:
        return own_pipeline(preprocess)
    published = None if record is None else _published(record.name, record.model, json.dumps(dict(record.options)))
    if published is None:
        raise SpecError(
            f"backbone {record and record.name!r}: expected to say how an image becomes its input, got nothing; "
            "use --preprocess MODULE:FUNCTION, from a Pillow image to a tensor [C, H, W]."
        )
    return published_pipeline(published)


@cache
def _published(name: str, model: str | None, options: str) -> ImagePreprocess | None:
    """What the plugin says of a model, which is built without memory to ask."""
    entry = default_registry().backbone_entry(name)
    with torch.device("meta"):
        network = build_backbone(entry, model, **json.loads(options))
    return ask_preprocess(entry, network)
