"""What this package offers. Imports neither torch nor scikit-learn, so listing stays fast."""

from __future__ import annotations

import regplug

READOUT = "compress-concat"
READOUT_OPTIONS = {"compressed_dim": 12}


@regplug.hookimpl
def regplug_readouts() -> list[regplug.ReadoutEntry]:
    """Offer the strategy ``digits-gate``."""
    return [
        regplug.ReadoutEntry(
            "digits-gate",
            build="regplug_digits.gate:DigitsGate",
            cond_dim="regplug_digits.sizes:gate_width",
            summary="gated mean pooling: each register gates its own features",
            equation="c = (1 / R) sum_r sigmoid(W x_r + b_r) * x_r",
            source="the gated linear unit (Dauphin et al., 2017), with the register itself as the linear branch",
        )
    ]


@regplug.hookimpl
def regplug_backbones() -> list[regplug.BackboneEntry]:
    """Offer the backbone ``digits-vit``."""
    return [
        regplug.BackboneEntry(
            "digits-vit",
            build="regplug_digits.model:DigitsViT",
            layout="regplug_digits.model:layout_of",
            film_sites="regplug_digits.model:film_sites",
            tokens="regplug_digits.model:DigitsTokens",
            describe="regplug_digits.model:describe",
            preprocess="regplug_digits.preprocessing:preprocess",
            classes=("regplug_digits.model:DigitsViT",),
            readouts=("compress-concat", "pool", "mean", "concat", "digits-gate"),
            default=READOUT,
            options=READOUT_OPTIONS,
            summary="classifier of 8x8 digits; registers condition its convolution kernels by FiLM",
        )
    ]
