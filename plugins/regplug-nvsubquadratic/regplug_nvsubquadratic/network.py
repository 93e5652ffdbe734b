"""A ViT5ClassificationNet as regplug sees it: where its registers sit, where it wants FiLM pairs, how it is read.

Imports nothing of nvsubquadratic: a network brings its package along.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from regplug import FiLMSite, ShapeError, SpecError, TokenLayout

CLASS = "nvsubquadratic.networks.vit5_classification:ViT5ClassificationNet"


def layout_of(model: Any) -> TokenLayout:
    """Where the registers of a ``ViT5ClassificationNet`` sit: ``[patches, CLS?, REG, PAD?]``.

    The network's final norm comes after its own readout, so registers are not normalised. T is left open: the Hyena
    blocks see padding behind the registers, attention blocks and ``tokens`` do not.

    Raises:
        SpecError: The network carries no registers, or is none of these.
    """
    _network_class(model)
    if model.reg_token is None:
        raise SpecError(
            f"model {type(model).__name__}: carries no register tokens (num_registers={model.num_registers}); "
            "use a network with num_registers >= 1."
        )
    return TokenLayout(
        num_registers=model.reg_token.shape[1],
        hidden_dim=model.reg_token.shape[2],
        start=model.num_patches + int(model.use_cls_token),
        normalized=False,
    )


def _network_class(model: object) -> Any:
    """``ViT5ClassificationNet`` itself, found by its name along the model's MRO."""
    for base in type(model).__mro__:
        if f"{base.__module__}:{base.__qualname__}" == CLASS:
            return base
    cls = type(model)
    raise SpecError(
        f"model {cls.__name__}: expected a ViT5ClassificationNet of nvsubquadratic, got a "
        f"{cls.__module__}:{cls.__qualname__}."
    )


def film_sites(model: nn.Module) -> list[FiLMSite]:
    """The kernels that a FiLM generator modulates, in the order of their blocks."""
    return [
        FiLMSite(path, features=kernel.mlp_hidden_dim, num_layers=kernel.film_generator.num_film_layers)
        for path, kernel in model.named_modules()
        if getattr(kernel, "film_generator", None) is not None
    ]


def tokens(model: nn.Module, normalized: bool) -> nn.Module:
    """A module from images to the tokens after the last block, ``[B, T, D]``, without padding.

    Raises:
        SpecError: ``normalized`` is asked for, and the network's final norm is not for single tokens; or the network's
            class has a forward of its own.
    """
    return NetworkTokens(model, normalized)


class NetworkTokens(nn.Module):
    """Images ``[B, H, W, C]``, or ``{"input": images}`` as the network takes them -> tokens ``[patches, CLS?, REG]``.

    The network's forward ends in logits. But one of its readouts, ``register_concat``, hands the tokens from a given
    one on through a neck, norm and head: a shallow copy of the network that starts at the first token, with nothing in
    the places of those three, gives all. Nothing of the network changes, there is no hook to remove, and no thread
    meets another.

    Args:
        model: A ``ViT5ClassificationNet``; its blocks and embeddings are shared.
        normalized: Whether the final norm is applied to each token.

    Attributes:
        example_shape: ``(H, W, C)`` of images as large as the network's grid of positions, for ``regplug check``.
    """

    def __init__(self, model: Any, normalized: bool) -> None:
        known = _network_class(model)
        if type(model).forward is not known.forward:  # which may do anything with the copy below, and nobody would know
            raise SpecError(
                f"model {type(model).__name__}: expected the forward of {known.__name__}, from which tokens are read, "
                "got one of its own; use layout_of(model) and tokens that you read yourself."
            )
        if normalized and model.readout == "register_concat":
            raise SpecError(
                f"model {type(model).__name__}: normalized: expected False with readout='register_concat', whose norm "
                "is for all registers side by side and not for one, got True."
            )
        super().__init__()
        layout = layout_of(model)
        self.example_shape = (model.image_size, model.image_size, model.patch_embed.in_channels)
        self.num_tokens = layout.min_tokens
        self.hidden_dim = layout.hidden_dim
        self.norm = model.out_norm if normalized else nn.Identity()
        network = copy.copy(model)
        network._modules = dict(model._modules)  # which a copy would share
        network.readout = "register_concat"
        network.use_cls_token = False
        network.num_patches = 0
        network.num_registers = self.num_tokens
        network.register_neck = network.out_norm = network.dropout = network.out_proj = nn.Identity()
        self.network = network

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The tokens of ``inputs``, ``[B, T, D]``; anything but images with the channels last is a ShapeError."""
        images = inputs.get("input") if isinstance(inputs, Mapping) else inputs
        channels = self.network.patch_embed.in_channels
        if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[-1] != channels:
            got = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ShapeError(
                f"backbone 'nvsubquadratic': expected images [B, H, W, {channels}] or {{'input': images}}, "
                f"channels last, got {got}."
            )
        # not network(...): hooks on the network, and what replaced the forward of this one instance, expect logits
        given = type(self.network).forward(self.network, {"input": images})["logits"]
        found: Tensor = self.norm(given.unflatten(1, (self.num_tokens, self.hidden_dim)))
        return found
