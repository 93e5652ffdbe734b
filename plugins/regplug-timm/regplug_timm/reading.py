"""From a timm model's inputs to its tokens, the final norm applied or not."""

# TorchScript compiles forward(), so its annotations are not postponed
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

import regplug

from .layouts import name_of

# used by forward_head alone; a program would contain their weights for nothing
AFTER = ("head", "head_drop", "fc_norm", "attn_pool")


class TimmTokens(nn.Module):
    """Images ``[B, C, H, W]`` -> tokens ``[B, T, D]`` by ``forward_features``; scripts and exports.

    Args:
        model: A VisionTransformer or an Eva without the layers after its tokens.

    Attributes:
        input_shape: ``(C, H, W)`` of the model's images; None if it takes several sizes.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.input_shape = image_shape(model)

    def forward(self, images: Tensor) -> Tensor:
        """The tokens of ``images``."""
        tokens: Tensor = self.model.forward_features(images)
        return tokens


class NaFlexTokens(nn.Module):
    """Images ``[B, C, H, W]``, or NaFlex patches with their coordinates -> tokens ``[B, T, D]``; does not script.

    Args:
        model: A NaFlexVit.

    Attributes:
        example_shape: ``(C, H, W)`` of images of two by two patches, for ``regplug check``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.example_shape = _example_shape(model)

    def forward(self, inputs: Tensor | Mapping[str, Any]) -> Tensor:
        """The tokens of images, or of ``{"patches": ..., "patch_coord": ..., "patch_valid": ...}``.

        Padding patches have tokens too, after the registers and the valid patches.
        """
        if isinstance(inputs, Mapping):
            found = self.model.forward_features(**inputs)
        else:
            found = self.model.forward_features(inputs)
        tokens: Tensor = found["patches"] if isinstance(found, dict) else found
        return tokens


def tokens(model: nn.Module, normalized: bool) -> nn.Module:
    """The module from inputs to the tokens of ``model``; it shares the model's weights.

    ``normalized`` applies the model's ``norm``; in a model that normalises after pooling, its ``fc_norm``, per token.

    Raises:
        SpecError: The model has no final norm to apply.
    """
    own, pooled = model.norm, getattr(model, "fc_norm", None)
    norm = own if not isinstance(own, nn.Identity) else pooled
    if normalized and (norm is None or isinstance(norm, nn.Identity)):
        raise regplug.SpecError(
            f"model {name_of(model)!r}: normalized: expected False, because the model has no final norm, got True."
        )
    if "forward_features" in vars(model) and normalized != (not isinstance(own, nn.Identity)):
        # it is bound to the model and not to the copy, so it would silently apply the model's own norm
        raise regplug.SpecError(
            f"model {name_of(model)!r}: normalized: expected {not normalized}, because this instance's "
            f"forward_features was replaced and its norm cannot be changed, got {normalized}."
        )
    # copy.copy refuses a model with a parametrization
    kept = type(model).__new__(type(model))
    kept.__dict__ = {**vars(model), "_modules": dict(model._modules)}
    kept.norm = norm if normalized else nn.Identity()
    for name in AFTER:
        if kept._modules.get(name) is not None:
            kept._modules[name] = nn.Identity()
    return NaFlexTokens(kept) if hasattr(model, "embeds") else TimmTokens(kept)


def image_shape(model: nn.Module) -> tuple[int, int, int] | None:
    """``(C, H, W)`` of the images that a model with one size takes; None for several sizes."""
    size = getattr(model.patch_embed, "img_size", None)
    projection = getattr(model.patch_embed, "proj", None)
    if size is None or not isinstance(projection, nn.Conv2d):
        return None
    return (projection.in_channels, *size)


def _example_shape(model: Any) -> tuple[int, int, int]:
    height, width = model.embeds.patch_size
    return (model.embeds.in_chans, 2 * height, 2 * width)
