"""The backbone that this package offers. Imports neither torch nor timm, so listing stays fast."""

from __future__ import annotations

import regplug


@regplug.hookimpl
def regplug_backbones() -> list[regplug.BackboneEntry]:
    """Offer timm's models, by the names that ``timm.create_model`` takes."""
    return [
        regplug.BackboneEntry(
            "timm",
            build="regplug_timm.models:build",
            layout="regplug_timm.layouts:layout_of",
            tokens="regplug_timm.reading:tokens",
            describe="regplug_timm.models:describe",
            preprocess="regplug_timm.preprocessing:preprocess",
            readouts=("pool", "compress-concat", "mean", "concat", "attention", "gated-abmil"),
            default="pool",
            classes=(
                "timm.models.vision_transformer:VisionTransformer",
                "timm.models.eva:Eva",
                "timm.models.naflexvit:NaFlexVit",
            ),
            summary="timm's VisionTransformer, Eva and NaFlexVit with register tokens",
        )
    ]
