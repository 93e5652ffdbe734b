"""A ViT5ClassificationNet for regplug: where its registers sit, where it takes FiLM pairs, how its tokens are read.

Does not import nvsubquadratic, which is imported already where there is a network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from regplug import FiLMSite, ShapeError, SpecError, TokenGroup, TokenLayout

CLASS = "nvsubquadratic.networks.vit5_classification:ViT5ClassificationNet"


def layout_of(model: Any) -> TokenLayout:
    """Where the registers of a ``ViT5ClassificationNet`` sit: ``[patches, CLS?, REG, PAD?]``.

    The network's final norm comes after its own readout, so registers are not normalised. T is open: the Hyena blocks
    have padding after the registers, attention blocks and ``tokens`` do not.

    Raises:
        SpecError: The network has no registers, or is not a ``ViT5ClassificationNet``.
    """
    _network_class(model)
    if model.reg_token is None:
        raise SpecError(
            f"model {type(model).__name__}: carries no register tokens (num_registers={model.num_registers}); "
            "use a network with num_registers >= 1."
        )
    first = model.num_patches + int(model.use_cls_token)
    cls = [TokenGroup("cls", model.num_patches, first)] if model.use_cls_token else []
    return TokenLayout(
        num_registers=model.reg_token.shape[1],
        hidden_dim=model.reg_token.shape[2],
        start=first,
        normalized=False,
        groups=(*cls, TokenGroup("patches", 0, model.num_patches)),
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
        SpecError: ``normalized`` is True and the network's final norm is not for single tokens; or the network's class
            has its own forward.
    """
    return NetworkTokens(model, normalized)


class NetworkTokens(nn.Module):
    """Images ``[B, H, W, C]``, or ``{"input": images}`` as the network takes them -> tokens ``[patches, CLS?, REG]``.

    The network's forward returns logits. But one of its readouts, ``register_concat``, passes all tokens from a given
    one through a neck, a norm and a head. So a shallow copy of the network that starts at the first token, with those
    three replaced by the identity, returns all tokens. The network itself does not change, no hook is needed, and it is
    safe with several threads.

    Args:
        model: A ``ViT5ClassificationNet``; its blocks and embeddings are shared.
        normalized: Whether the final norm is applied to each token.

    Attributes:
        example_shape: ``(H, W, C)`` of images that fit the network's grid of positions, for ``regplug check``.
    """

    def __init__(self, model: Any, normalized: bool) -> None:
        known = _network_class(model)
        if type(model).forward is not known.forward:  # which may do anything with the copy below
            raise SpecError(
                f"model {type(model).__name__}: expected the forward of {known.__name__}, from which tokens are read, "
                "got its own; use layout_of(model) and tokens that you read yourself."
            )
        if normalized and model.readout == "register_concat":
            raise SpecError(
                f"model {type(model).__name__}: normalized: expected False with readout='register_concat', where the "
                "norm is for all registers concatenated and not for one, got True."
            )
        super().__init__()
        layout = layout_of(model)
        self.example_shape = (model.image_size, model.image_size, model.patch_embed.in_channels)
        self.num_tokens = layout.min_tokens
        self.hidden_dim = layout.hidden_dim
        self.norm = model.out_norm if normalized else nn.Identity()
        network = copy.copy(model)
        network._modules = dict(model._modules)  # a copy would share the dictionary
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
        # not network(...): hooks on the network, and a forward that was set on the instance, expect logits
        given = type(self.network).forward(self.network, {"input": images})["logits"]
        found: Tensor = self.norm(given.unflatten(1, (self.num_tokens, self.hidden_dim)))
        return found
