"""Where the register tokens of a timm model sit: ``[CLS?, REG x R, patches]`` in all three families."""

from __future__ import annotations

from torch import nn

import regplug


def name_of(model: nn.Module) -> str:
    """The model as messages call it: what ``timm.create_model`` made it of, else its class."""
    known = getattr(model, "pretrained_cfg", None) or {}
    name = known.get("architecture")
    return str(name or type(model).__name__)


def layout_of(model: nn.Module) -> regplug.TokenLayout:
    """The layout of what ``forward_features`` gives.

    ``num_prefix_tokens`` counts the registers and the class tokens before them, of which a distilled DeiT has two.

    Raises:
        SpecError: The model carries no registers.
    """
    # NaFlexVit keeps its tokens in a module of their own
    holder = getattr(model, "embeds", model)
    register = getattr(holder, "reg_token", None)
    count = 0 if register is None else int(register.shape[1])
    if count == 0:
        prefix = getattr(model, "num_prefix_tokens", 0)
        raise regplug.SpecError(
            f"model {name_of(model)!r}: carries no register tokens (a {type(model).__name__} with {prefix} prefix "
            "tokens, none of them a register); use one whose name says reg, dinov3 or radio."
        )
    return regplug.TokenLayout(
        num_registers=count,
        hidden_dim=int(register.shape[2]),
        start=int(model.num_prefix_tokens) - count,
        normalized=not isinstance(model.norm, nn.Identity),
    )
