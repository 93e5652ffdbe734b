from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from PIL import Image

import regplug
from regplug.nn.backbone import ask_preprocess, build_backbone
from regplug.nn.image_input import apply_preprocess
from regplug_transformers.families import FAMILIES

ENTRY = regplug.default_registry().backbone_entry("transformers")
PROCESSORS = {
    "dinov3_vit": "dinov3_vit.image_processing_dinov3_vit:DINOv3ViTImageProcessor",
    "sapiens2": "sapiens2.image_processing_sapiens2:Sapiens2ImageProcessor",
    "tipsv2_vision_model": "tipsv2.image_processing_tipsv2:Tipsv2ImageProcessor",
    "dinov2_with_registers": "bit.image_processing_bit:BitImageProcessor",
}
# as facebook/dinov2-with-registers-small publishes it
DINOV2 = {
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def small(model_type: str, **options: object) -> torch.nn.Module:
    with torch.device("meta"):
        model: torch.nn.Module = build_backbone(ENTRY, model_type, num_hidden_layers=1, **options)
    return model


@pytest.mark.parametrize("model_type", PROCESSORS)
def test_inputs_are_those_of_the_familys_image_processor(model_type: str) -> None:
    size = 518 if model_type == "dinov2_with_registers" else 224
    how = ask_preprocess(ENTRY, small(model_type, image_size=size))
    assert how is not None
    module, _, name = PROCESSORS[model_type].partition(":")
    cls = getattr(importlib.import_module(f"transformers.models.{module}"), name)
    settings = DINOV2 if model_type == "dinov2_with_registers" else {"size": {"height": 224, "width": 224}}
    # smooth, because the processor resizes without rounding to whole numbers, or rounds in another way
    rows, columns = np.mgrid[0:300, 0:401]
    pixels = np.stack([rows * 255 / 300, columns * 255 / 401, (rows + columns) * 255 / 701], 2).astype(np.uint8)
    image = Image.fromarray(pixels)
    theirs = cls(**settings)(image, return_tensors="pt")["pixel_values"][0]
    ours = apply_preprocess(image, how)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 2 / 255 / min(how.std)


def test_each_family_says_something_or_publishes_nothing() -> None:
    known = {one.model_type: ask_preprocess(ENTRY, small(one.model_type)) for one in FAMILIES}
    assert [name for name, how in known.items() if how is None] == ["radio"]
