"""The backbone that this package offers. Imports neither torch nor transformers, so listing stays fast."""

from __future__ import annotations

import regplug

from .families import CLASSES


@regplug.hookimpl
def regplug_backbones() -> list[regplug.BackboneEntry]:
    """Offer transformers' models, by type, by a checkpoint's folder or by its id on the hub."""
    return [
        regplug.BackboneEntry(
            "transformers",
            build="regplug_transformers.models:build",
            layout="regplug_transformers.layouts:layout_of",
            tokens="regplug_transformers.reading:tokens",
            describe="regplug_transformers.models:describe",
            preprocess="regplug_transformers.preprocessing:preprocess",
            readouts=("pool", "compress-concat", "mean", "concat", "attention", "gated-abmil"),
            default="pool",
            classes=CLASSES,
            summary="transformers' DINOv2 with registers, DINOv3 ViT, RADIO, Sapiens2 and TIPSv2",
        )
    ]
