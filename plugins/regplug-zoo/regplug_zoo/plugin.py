"""What this package tells regplug. Imports no torch: listing stays fast."""

from __future__ import annotations

import regplug

# strategy -> class, what a list of strategies says of it
READOUTS = {
    "sum": ("moments:RegisterSum", "sum over the registers"),
    "max": ("moments:RegisterMax", "largest value of each channel"),
    "avgmax": ("moments:RegisterAvgMax", "half of mean plus maximum"),
    "mean-std": ("moments:RegisterMeanStd", "mean and standard deviation side by side"),
    "gem": ("weighted:RegisterGeM", "sign-safe generalised mean with a learned exponent"),
    "channel-pool": ("weighted:RegisterChannelPooling", "learned average with a weight for each register and channel"),
    "per-register-compress-concat": (
        "concatenations:PerRegisterCompressConcat",
        "each register through a projection of its own, then flat",
    ),
    "concat-linear": ("concatenations:RegisterConcatLinear", "all registers, flat, through one linear layer"),
    "abmil": ("attention:RegisterABMIL", "average weighted by what each register holds"),
    "simpool": ("attention:RegisterSimPool", "the mean register attends over the registers"),
    "class-attention": (
        "attention:RegisterClassAttention",
        "a learned class token attends over itself and the registers",
    ),
    "pma": ("queries:RegisterPMA", "learned seeds attend over the registers, side by side"),
    "efficient-probing": (
        "queries:RegisterEfficientProbing",
        "many learned queries, each with its share of the channels",
    ),
}


@regplug.hookimpl
def regplug_readouts() -> list[regplug.ReadoutEntry]:
    """Offer every readout of this package."""
    return [
        regplug.ReadoutEntry(
            name,
            f"regplug_zoo.{build}",
            cond_dim=f"regplug_zoo.sizes:{name.replace('-', '_')}_width",
            summary=summary,
        )
        for name, (build, summary) in READOUTS.items()
    ]
