"""A join of three groups and two vectors, on tokens ``[B, T, 24]``, and conditioners around it."""

from typing import Any

import regplug

WIDTH = 24
LAYOUT = regplug.TokenLayout(
    num_registers=4,
    hidden_dim=WIDTH,
    start=1,
    groups=(regplug.TokenGroup("cls", 0, 1), regplug.TokenGroup("patches", 5)),
)
FIVE = regplug.join(
    cls="mean",
    registers=("compress-concat", {"compressed_dim": 6}),
    patches="attention",
    state=7,
    time=(1, "gated-abmil", {"attention_dim": 3}),
)


def film_of(spec: regplug.ReadoutSpec) -> Any:
    """A small FiLM generator that does not start as the identity."""
    sizes = {"kernel_hidden_dim": 5, "num_film_layers": 2, "init_type": "small_random"}
    return regplug.pair(spec, regplug.KernelFiLMGenerator, **sizes)


def conditioner(spec: regplug.ReadoutSpec, layout: regplug.TokenLayout) -> tuple[regplug.ReadoutSpec, Any]:
    """The spec, and a conditioner of it."""
    return spec, regplug.Conditioner(layout, spec.build(), film_of(spec))
