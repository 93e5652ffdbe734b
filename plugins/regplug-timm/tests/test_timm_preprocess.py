from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import regplug
from regplug.nn.backbone import ask_preprocess
from regplug.nn.image_input import apply_preprocess

ENTRY = regplug.default_registry().backbone_entry("timm")


def build(name: str, **options: object) -> torch.nn.Module:
    with torch.device("meta"):
        model: torch.nn.Module = timm.create_model(name, depth=1, **options)
    return model


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch14_reg4_dinov2",
        "vit_medium_patch16_reg4_gap_256",
        "vit_small_patch16_dinov3",
        "vit_base_patch16_radio_v3",
        "vit_betwixt_patch16_rope_reg4_gap_256",
        "naflexvit_base_patch16_gap",
    ],
)
@pytest.mark.parametrize("size", [(300, 401), (190, 90)])
def test_inputs_are_those_of_timms_own_transform(name: str, size: tuple[int, int]) -> None:
    model = build(name)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    how = ask_preprocess(ENTRY, model)
    assert how is not None
    theirs = create_transform(**resolve_model_data_config(model))(image)
    assert torch.allclose(apply_preprocess(image, how), theirs, atol=1e-5, rtol=0)


def test_the_size_is_that_of_the_model_and_not_of_its_published_weights() -> None:
    model = build("vit_small_patch14_reg4_dinov2", img_size=(56, 84))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8))
    how = ask_preprocess(ENTRY, model)
    assert how is not None
    config = resolve_model_data_config(model, args={"input_size": (3, 56, 84)})
    theirs = create_transform(**config)(image)
    assert how.size == (56, 84)
    assert torch.allclose(apply_preprocess(image, how), theirs, atol=1e-5, rtol=0)


def test_a_model_for_grey_levels_gets_them_and_other_channels_are_not_known() -> None:
    grey = ask_preprocess(ENTRY, build("vit_small_patch14_reg4_dinov2", in_chans=1))
    assert grey is not None
    assert len(grey.mean) == 1
    assert ask_preprocess(ENTRY, build("vit_small_patch14_reg4_dinov2", in_chans=4)) is None


def test_a_model_without_a_published_configuration_has_none() -> None:
    model = build("vit_small_patch14_reg4_dinov2")
    for published in (None, {**model.pretrained_cfg, "crop_mode": "border"}):
        model.pretrained_cfg = published
        assert ask_preprocess(ENTRY, model) is None
