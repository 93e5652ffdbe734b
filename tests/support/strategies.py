"""Every strategy that is installed for the tests, with options that fit R = 4 and D = 24."""

import functools

import torch

import regplug
from regplug.nn.readouts.join_parts import JoinPart
from support.readouts import moved

R, D = 4, 24
# strategy -> its options, and the FLOPs for one sample that torch's counter does not see: those by element
EVERY = {
    "regplug:mean": ({}, R * D),
    "regplug:pool": ({}, 3 * R),
    "regplug:concat": ({}, 0),
    "regplug:compress-concat": ({"compressed_dim": 6}, 0),
    "regplug:select-concat": ({"indices": (2, 0)}, 0),
    "regplug:mamba-reg": ({"ratio": 3}, 4 * R * 8),
    "regplug:gated-abmil": ({"attention_dim": 5}, R * (3 * 5 + 3)),
    "regplug:attention": ({"num_queries": 2, "num_heads": 3}, 2 * (3 * R * 3 + 4 * D + 7 * D)),
    "regplug:join": (
        {
            "parts": (
                JoinPart("first", "mean", 0, 1),
                JoinPart("rest", "compress-concat", 1, options={"compressed_dim": 6}),
            )
        },
        0,
    ),
    "regplug-digits:digits-gate": ({}, 0),
    "regplug-zoo:sum": ({}, (R - 1) * D),
    "regplug-zoo:max": ({}, (R - 1) * D),
    "regplug-zoo:avgmax": ({}, (2 * R + 1) * D),
    "regplug-zoo:mean-std": ({}, (4 * R + 2) * D),
    "regplug-zoo:first-token": ({}, 0),
    "regplug-zoo:last-token": ({}, 0),
    "regplug-zoo:mean-sqrt-len": ({}, R * D),
    "regplug-zoo:weighted-mean": ({}, 2 * R * D + R),
    "regplug-zoo:gem": ({}, (6 * R + 4) * D + 2),
    "regplug-zoo:channel-pool": ({}, 5 * R * D),
    "regplug-zoo:per-register-compress-concat": ({"compressed_dim": 6}, 0),
    "regplug-zoo:concat-linear": ({"out_features": 7}, 7),
    "regplug-zoo:abmil": ({"attention_dim": 5}, R * (5 + 3)),
    "regplug-zoo:simpool": ({}, 9 * R * D + 4 * R),
    "regplug-zoo:class-attention": ({"num_heads": 3}, 4 * (R + 1) * 3 + D),
    "regplug-zoo:pma": (
        {"num_seeds": 2, "num_heads": 3, "layer_norm": True},
        4 * 2 * R * 3 + (6 * 2 + R) * D + 16 * 2 * D,
    ),
    "regplug-zoo:efficient-probing": ({"num_queries": 3, "d_out": 2}, 3 * D + 3 * R * 3 + 2 * R * 12),
    "regplug-zoo:sinusoidal": ({"dim": 6}, R * D * 9),
}
BUILT_IN = sorted(name.partition(":")[2] for name in EVERY if name.startswith("regplug:"))


@functools.cache
def spec_of(strategy):
    """The strategy's spec at R = 4 and D = 24."""
    return regplug.resolve(strategy, num_registers=R, hidden_dim=D, **EVERY[strategy][0])


def trained(strategy, dtype=torch.float32):
    """A readout whose parameters are no longer the initial ones."""
    torch.manual_seed(0)
    return moved(spec_of(strategy).build().to(dtype), 0.2)


def registers(batch=3, dtype=torch.float32):
    """Registers ``[batch, R, D]``, the same every time."""
    return torch.randn(batch, R, D, generator=torch.Generator().manual_seed(batch)).to(dtype)
