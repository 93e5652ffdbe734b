"""From the inputs of a transformers model to its tokens, the final norm applied or not."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

import regplug

from .layouts import base_of

# what a family's plain model takes of the inputs of a model around it: labels are the head's, an attention mask of
# TIPSv2's processor is the text tower's
SHARED_INPUTS = ("pixel_values", "bool_masked_pos")


class TransformersTokens(nn.Module):
    """Images ``[B, C, H, W]``, or a processor's mapping -> tokens ``[B, T, D]``: ``last_hidden_state``.

    Exports; does not script, for transformers' models do not, and says so.

    Args:
        model: A family's plain model.
        inside: Whether it comes from inside another model, whose inputs a mapping then holds.

    Attributes:
        input_shape: ``(C, H, W)`` of the images that the model was made for.
    """

    def __init__(self, model: nn.Module, inside: bool) -> None:
        super().__init__()
        self.model = model
        self.inside = inside
        config: Any = model.config
        size = config.image_size
        self.input_shape = (config.num_channels, *((size, size) if isinstance(size, int) else size))

    def forward(self, inputs: Tensor | Mapping[str, Any]) -> Tensor:
        """The tokens of ``inputs``.

        Raises:
            ShapeError: There are no images ``[B, C, H, W]`` in them; RADIO's packed patches are none.
        """
        given = dict(inputs) if isinstance(inputs, Mapping) else {"pixel_values": inputs}
        images = given.get("pixel_values")
        if not (isinstance(images, Tensor) and images.ndim == 4):
            got = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise regplug.ShapeError(
                f"model {type(self.model).__name__}: pixel_values: expected images [B, C, H, W], got {got}."
            )
        if self.inside:
            given = {word: given[word] for word in SHARED_INPUTS if word in given}
        tokens: Tensor = self.model(**{**given, "return_dict": True}).last_hidden_state
        return tokens

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` asks first; the compiler would end somewhere in the network's configuration.

        Raises:
            ExportError: Always.
        """
        raise regplug.ExportError(
            f"{type(self.model).__name__}, which does not script, as none of transformers' models does; "
            f"use the backend aotinductor, or export the readout without its network."
        )


def tokens(model: nn.Module, normalized: bool) -> nn.Module:
    """The module that gives the tokens of ``model``, whose weights it shares.

    Raises:
        SpecError: The model has no final norm to apply, or its norm cannot be left out, or it is a configuration or of
            a class whose forward is its own.
    """
    base, family = base_of(model)
    name = type(base).__name__
    if normalized and family.norm is None:
        raise regplug.SpecError(f"model {name}: normalized: expected False, for the model has no final norm, got True.")
    kept = base
    if not normalized and family.norm is not None:
        if "forward" in vars(base):  # bound to the model and not to its copy: it would apply the norm all the same
            raise regplug.SpecError(
                f"model {name}: normalized: expected True, for something replaced this instance's forward (as "
                f"accelerate's device maps do) and its norm cannot be left out, got False."
            )
        kept = copy.copy(base)
        kept._modules = {**base._modules, family.norm: nn.Identity()}
    return TransformersTokens(kept, inside=base is not model)
