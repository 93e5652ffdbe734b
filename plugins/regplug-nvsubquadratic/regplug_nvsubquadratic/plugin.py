"""What this package offers. Imports neither torch nor nvsubquadratic, so listing stays fast."""

from __future__ import annotations

import regplug


@regplug.hookimpl
def regplug_readouts() -> list[regplug.ReadoutEntry]:
    """Offer nvSubquadratic's two readouts unchanged; ``pool`` and ``compress-concat`` take their weights."""
    return [
        regplug.ReadoutEntry(
            "nvsubquadratic-pool",
            "nvsubquadratic.modules.film:RegisterPooling",
            summary="nvSubquadratic's own learned weighted pooling, for any D",
            equation="c = sum_r softmax(w)_r x_r",
            source="nvSubquadratic, modules/film.py",
        ),
        regplug.ReadoutEntry(
            "nvsubquadratic-compress-concat",
            "nvsubquadratic.modules.film:RegisterCompressConcat",
            summary="nvSubquadratic's own shared projection, then concatenated, for any R",
            equation="c = [W x_1 || ... || W x_R]",
            source="nvSubquadratic, modules/film.py",
        ),
    ]


@regplug.hookimpl
def regplug_backbones() -> list[regplug.BackboneEntry]:
    """Offer nvSubquadratic's classification network, and two official networks by their rule alone."""
    return [
        regplug.BackboneEntry(
            "nvsubquadratic",
            build="regplug_nvsubquadratic.shipped:build",
            layout="regplug_nvsubquadratic.network:layout_of",
            film_sites="regplug_nvsubquadratic.network:film_sites",
            tokens="regplug_nvsubquadratic.network:tokens",
            weights="regplug_nvsubquadratic.checkpoint:find_readouts",
            classes=("nvsubquadratic.networks.vit5_classification:ViT5ClassificationNet",),
            readouts=("pool", "compress-concat", "nvsubquadratic-pool", "nvsubquadratic-compress-concat"),
            default="pool",
            summary="ViT5ClassificationNet, attention and Hyena blocks; registers condition its kernels by FiLM",
        ),
        regplug.BackboneEntry(
            "mamba-reg",
            build="regplug_nvsubquadratic.official:mamba_reg",
            layout="regplug_nvsubquadratic.official:layout_of",
            weights="regplug_nvsubquadratic.checkpoint:find_mamba_reg",
            readouts=("mamba-reg", "concat"),
            default="mamba-reg",
            summary="Mamba-Reg, registers interleaved with the patches; sizes and checkpoints only, no network",
        ),
        regplug.BackboneEntry(
            "vit5",
            build="regplug_nvsubquadratic.official:vit5",
            layout="regplug_nvsubquadratic.official:layout_of",
            readouts=("pool", "compress-concat", "mean", "concat"),
            default="pool",
            summary="the official ViT-5, registers last; sizes only, no network",
        ),
    ]
