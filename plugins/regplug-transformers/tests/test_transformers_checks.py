"""One model of each family passes every check that regplug has for backbones."""

from __future__ import annotations

from typing import Any

import pytest

from regplug.conformance import check_backbone

MODELS: dict[str, dict[str, Any]] = {
    "dinov2_with_registers": {"image_size": 28},
    "dinov3_vit": {"image_size": 32, "num_register_tokens": 4},
    "radio": {"image_size": 64, "max_img_size": 64},
    "sapiens2": {"image_size": 32},
    "tipsv2_vision_model": {"image_size": 28},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_passes_every_check(name: str) -> None:
    rows = check_backbone(f"transformers:{name}", options={"num_hidden_layers": 1, **MODELS[name]})
    assert {row.check: row.detail for row in rows if not row.ok} == {}
    unpublished = ["preprocess"] if name == "radio" else []
    assert [row.check for row in rows if row.verdict == "not applicable"] == ["film-sites", *unpublished]
