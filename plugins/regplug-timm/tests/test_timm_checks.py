"""One model of each family and way to norm passes every check that regplug has for backbones."""

from __future__ import annotations

from typing import Any

import pytest

from regplug.conformance import check_backbone

MODELS: dict[str, dict[str, Any]] = {
    "vit_small_patch14_reg4_dinov2": {"img_size": 28, "depth": 2},
    "vit_medium_patch16_reg4_gap_256": {"img_size": 32, "depth": 2},
    "vit_base_patch16_radio_v3": {"img_size": 32, "depth": 1},
    "vit_small_patch16_dinov3": {"img_size": 32, "depth": 2},
    "vit_base_patch16_sapiens2": {"img_size": 32, "depth": 1, "num_kv_heads": [1]},
    "naflexvit_base_patch16_gap": {"depth": 1},
    "naflexvit_base_patch16_map": {"depth": 1},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_passes_every_check(name: str) -> None:
    rows = {row.check: row for row in check_backbone(f"timm:{name}", options=MODELS[name])}
    assert {check: row.detail for check, row in rows.items() if not row.ok} == {}
    assert [check for check, row in rows.items() if row.verdict == "not applicable"] == ["film-sites"]
