"""From the inputs of a transformers model to its tokens, the final norm applied or not."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

import regplug

from .layouts import base_of

# the inputs of an outer model that the plain model takes: labels are for the head, the attention mask of TIPSv2's
# processor is for the text tower
SHARED_INPUTS = ("pixel_values", "bool_masked_pos")


class TransformersTokens(nn.Module):
    """Images ``[B, C, H, W]``, or a processor's mapping -> tokens ``[B, T, D]``: ``last_hidden_state``.

    Exports; does not script, because transformers' models do not, and says so.

    Args:
        model: A family's plain model.
        inside: Whether it is inside another model; a mapping then holds that model's inputs.

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
            ShapeError: They hold no images ``[B, C, H, W]``; RADIO's packed patches are refused too.
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
        """Called by ``torch.jit.script`` first; its compiler would fail somewhere in the network's configuration.

        Raises:
            ExportError: Always.
        """
        raise regplug.ExportError(
            f"{type(self.model).__name__}, which does not script, as none of transformers' models does; "
            f"use the backend aotinductor, or export the readout without its network."
        )


def tokens(model: nn.Module, normalized: bool) -> nn.Module:
    """The module from inputs to the tokens of ``model``; it shares the model's weights.

    Raises:
        SpecError: The model has no final norm to apply, its norm cannot be left out, it is a configuration, or its
            class has its own forward.
    """
    base, family = base_of(model)
    name = type(base).__name__
    if normalized and family.norm is None:
        raise regplug.SpecError(
            f"model {name}: normalized: expected False, because the model has no final norm, got True."
        )
    kept = base
    if not normalized and family.norm is not None:
        if "forward" in vars(base):  # bound to the model and not to its copy, so it would still apply the norm
            raise regplug.SpecError(
                f"model {name}: normalized: expected True, because this instance's forward was replaced (as by "
                f"accelerate's device maps) and its norm cannot be left out, got False."
            )
        kept = copy.copy(base)
        kept._modules = {**base._modules, family.norm: nn.Identity()}
    return TransformersTokens(kept, inside=base is not model)
