"""Where the register tokens of a timm model sit: ``[CLS?, REG x R, patches]`` in all three families."""

from __future__ import annotations

from typing import Any

from torch import nn

import regplug

# class -> its methods that decide the order of the tokens
FAMILIES = {
    "timm.models.vision_transformer:VisionTransformer": ("forward_features", "_pos_embed"),
    "timm.models.eva:Eva": ("forward_features", "_pos_embed"),
    "timm.models.naflexvit:NaFlexVit": ("forward_features", "_forward_embeds"),
}


def name_of(model: nn.Module) -> str:
    """The model's name for messages: the one given to ``timm.create_model``, else its class."""
    known = getattr(model, "pretrained_cfg", None) or {}
    name = known.get("architecture")
    return str(name or type(model).__name__)


def layout_of(model: nn.Module) -> regplug.TokenLayout:
    """The layout of the output of ``forward_features``.

    ``num_prefix_tokens`` counts the registers and the class tokens before them; a distilled DeiT has two of those.

    Raises:
        SpecError: The model has no registers, or its class arranges its tokens in its own way.
    """
    # NaFlexVit keeps its tokens in a separate module
    register = getattr(getattr(model, "embeds", model), "reg_token", None)
    count = 0 if register is None else int(register.shape[1])
    if register is None or count == 0:
        prefix = getattr(model, "num_prefix_tokens", 0)
        raise regplug.SpecError(
            f"model {name_of(model)!r}: carries no register tokens (a {type(model).__name__} with {prefix} prefix "
            "tokens, none of them a register); use one with reg, dinov3 or radio in its name."
        )
    _check_class(model)
    seen: Any = model
    prefix = int(seen.num_prefix_tokens)
    cls = [regplug.TokenGroup("cls", 0, prefix - count)] if prefix > count else []
    return regplug.TokenLayout(
        num_registers=count,
        hidden_dim=int(register.shape[2]),
        start=prefix - count,
        normalized=not isinstance(seen.norm, nn.Identity),
        groups=(*cls, regplug.TokenGroup("patches", prefix)),
    )


def _check_class(model: nn.Module) -> None:
    """Refuse a subclass with its own order of tokens: a distilled DeiT makes a register parameter and drops it."""
    cls = type(model)
    known = ((base, FAMILIES.get(f"{base.__module__}:{base.__qualname__}")) for base in cls.__mro__)
    family, methods = next(((base, methods) for base, methods in known if methods), (None, ()))
    own = [method for method in methods if getattr(cls, method) is not getattr(family, method)]
    if family is None or own:
        raise regplug.SpecError(
            f"model {name_of(model)!r}: expected a class that arranges its tokens as timm's VisionTransformer, Eva or "
            f"NaFlexVit does, got {cls.__name__} with its own {' and '.join(own) or 'way'}; another plugin may "
            "register it as a backbone."
        )
