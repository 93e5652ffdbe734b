"""From a timm model's inputs to its tokens, the final norm applied or not."""

# TorchScript compiles forward(), so its annotations are not postponed
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

import regplug

from .layouts import name_of

# what forward_features leaves to forward_head; a program would carry their weights for nothing
AFTER = ("head", "head_drop", "fc_norm", "attn_pool")


class TimmTokens(nn.Module):
    """Images ``[B, C, H, W]`` -> tokens ``[B, T, D]`` by ``forward_features``; scripts and exports.

    Args:
        model: A VisionTransformer or an Eva without what comes after its tokens.

    Attributes:
        input_shape: ``(C, H, W)`` of the images that the model takes, where it takes one size.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.input_shape = _image_shape(model)

    def forward(self, images: Tensor) -> Tensor:
        """The tokens of ``images``."""
        tokens: Tensor = self.model.forward_features(images)
        return tokens


class NaFlexTokens(nn.Module):
    """Images ``[B, C, H, W]``, or NaFlex patches with their coordinates -> tokens ``[B, T, D]``; does not script.

    Args:
        model: A NaFlexVit.

    Attributes:
        example_shape: ``(C, H, W)`` of images of two by two patches, with which ``regplug check`` tries the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.example_shape = _example_shape(model)

    def forward(self, inputs: Tensor | Mapping[str, Any]) -> Tensor:
        """The tokens of images, or of ``{"patches": ..., "patch_coord": ..., "patch_valid": ...}``.

        With patches, those that are padding have tokens too, behind the registers and the valid ones.
        """
        if isinstance(inputs, Mapping):
            found = self.model.forward_features(**inputs)
        else:
            found = self.model.forward_features(inputs)
        tokens: Tensor = found["patches"] if isinstance(found, dict) else found
        return tokens


def tokens(model: nn.Module, normalized: bool) -> nn.Module:
    """The module that gives the tokens of ``model``, whose weights it shares.

    ``normalized`` is the model's ``norm``; in a model that normalises after pooling, its ``fc_norm``, on every token.

    Raises:
        SpecError: The model has no final norm to apply.
    """
    own, pooled = model.norm, getattr(model, "fc_norm", None)
    norm = own if not isinstance(own, nn.Identity) else pooled
    if normalized and (norm is None or isinstance(norm, nn.Identity)):
        raise regplug.SpecError(
            f"model {name_of(model)!r}: normalized: expected False, for the model has no final norm, got True."
        )
    if "forward_features" in vars(model) and normalized != (not isinstance(own, nn.Identity)):
        # it is bound to the model and not to the copy: the norm would silently be the model's own
        raise regplug.SpecError(
            f"model {name_of(model)!r}: normalized: expected {not normalized}, for something replaced this instance's "
            f"forward_features and its norm cannot be changed, got {normalized}."
        )
    # as copy.copy does, which torch forbids for a model with a parametrization
    kept = type(model).__new__(type(model))
    kept.__dict__ = {**vars(model), "_modules": dict(model._modules)}
    kept.norm = norm if normalized else nn.Identity()
    for name in AFTER:
        if kept._modules.get(name) is not None:
            kept._modules[name] = nn.Identity()
    return NaFlexTokens(kept) if hasattr(model, "embeds") else TimmTokens(kept)


def _image_shape(model: nn.Module) -> tuple[int, int, int] | None:
    size = getattr(model.patch_embed, "img_size", None)
    projection = getattr(model.patch_embed, "proj", None)
    if size is None or not isinstance(projection, nn.Conv2d):
        return None
    return (projection.in_channels, *size)


def _example_shape(model: Any) -> tuple[int, int, int]:
    height, width = model.embeds.patch_size
    return (model.embeds.in_chans, 2 * height, 2 * width)
