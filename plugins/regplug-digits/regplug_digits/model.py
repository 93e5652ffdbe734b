"""The backbone ``digits-vit``: registers see the image, and draw the kernels that read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regplug

from .blocks import NUM_PATCHES, PATCH, Block
from .data import BACKGROUND, NUM_CLASSES, SIDE
from .plugin import READOUT, READOUT_OPTIONS

JOIN = "regplug:join"


class DigitsViT(nn.Module):
    """Classify 8x8 digits by kernels that register tokens shape for each image.

    The sequence is ``[16 patches, R registers]``; a patch is 2x2 pixels and the ring of pixels around them. The class
    is computed from the mean of the patches. With fixed conditioning vectors, the path from pixels to that mean is
    linear: the registers choose, image by image, the linear classifier. Without arguments it is the shipped
    configuration.

    Args:
        readout: A registered strategy, by name; or a join of ``registers`` and ``patches`` (``regplug.join``), which
            reads all 16 + R tokens.
        readout_options: Its options; None for those of the shipped configuration (``compress-concat``) or
            none (any other strategy, and a join, whose parts have their own).
        num_registers: Registers per image, R.
        hidden_dim: Width of a token, D; a multiple of ``num_heads``.
        num_blocks: Blocks, each with its own readout and FiLM generator.
        num_heads: Heads of the registers' attention.
        kernel_features: Width of the kernel's sine layers.
        num_film_layers: Modulated sine layers of each kernel.

    Attributes:
        cond_dim: Width of the conditioning vector in every block.
        layout: Where the registers sit.
        read_layout: Which tokens every block's readout reads: the registers, or all of them for a join.
        spec: The spec of every block's readout.
        options: The arguments, as plain JSON values; a join is the strategy ``join`` and its parts.

    Raises:
        NameLookupError: The strategy is not registered.
        SpecError: An option or a size does not fit.

    Example:
        >>> DigitsViT("digits-gate")(torch.zeros(2, 8, 8)).shape
        torch.Size([2, 10])
        >>> DigitsViT(regplug.join(registers="pool", patches="mean")).cond_dim
        96
    """

    def __init__(
        self,
        readout: str | regplug.Join = READOUT,
        readout_options: Mapping[str, Any] | None = None,
        *,
        num_registers: int = 4,
        hidden_dim: int = 48,
        num_blocks: int = 2,
        num_heads: int = 4,
        kernel_features: int = 32,
        num_film_layers: int = 2,
    ) -> None:
        super().__init__()
        self.layout = regplug.TokenLayout(
            num_registers=num_registers,
            hidden_dim=hidden_dim,
            start=-num_registers,
            normalized=True,
            groups=(regplug.TokenGroup("patches", 0, -num_registers),),
        )
        self.spec, self.read_layout = _spec_of(readout, readout_options, self.layout)
        self.cond_dim = self.spec.cond_dim
        self.options: dict[str, Any] = {
            "readout": JOIN if isinstance(readout, regplug.Join) else readout,
            "readout_options": self.spec.as_dict()["options"],
            "num_registers": num_registers,
            "hidden_dim": hidden_dim,
            "num_blocks": num_blocks,
            "num_heads": num_heads,
            "kernel_features": kernel_features,
            "num_film_layers": num_film_layers,
        }
        # each patch includes one pixel beyond its edge
        self.embed = nn.Conv2d(1, hidden_dim, kernel_size=PATCH + 2, stride=PATCH)
        self.positions = nn.Parameter(0.5 * torch.randn(NUM_PATCHES, hidden_dim))
        self.registers = nn.Parameter(0.5 * torch.randn(num_registers, hidden_dim))
        self.blocks = nn.ModuleList(
            Block(self.spec, self.read_layout, num_heads, kernel_features, num_film_layers) for _ in range(num_blocks)
        )
        self.norm = nn.RMSNorm(hidden_dim)
        self.head = nn.Linear(hidden_dim, NUM_CLASSES)

    def forward(self, images: Tensor, conditioning: Tensor | None = None) -> Tensor:
        """Classify ``images``.

        Args:
            images: Normalised images, ``[B, 8, 8]``.
            conditioning: ``[B, cond_dim]``, for the last block to use in place of its own readout's output.

        Returns:
            Logits ``[B, 10]``.

        Raises:
            ShapeError: ``conditioning`` has another shape.
        """
        if conditioning is not None and conditioning.shape != (len(images), self.cond_dim):
            raise regplug.ShapeError(
                f"backbone 'digits-vit': expected conditioning [{len(images)}, {self.cond_dim}], "
                f"got {list(conditioning.shape)}."
            )
        tokens = self.blocks[-1](self._before_last(images), conditioning)
        logits: Tensor = self.head(self.norm(tokens[:, :NUM_PATCHES].mean(dim=1)))
        return logits

    def last_tokens(self, images: Tensor) -> Tensor:
        """The token sequence that the last block's readout reads, ``[B, 16 + R, D]``.

        ``read_layout`` says which of them it reads; ``blocks[-1].readout`` and ``.film`` read them.
        """
        last: Block = self.blocks[-1]  # type: ignore[assignment]
        return last.read_tokens(self._before_last(images))

    def gathered_tokens(self, images: Tensor) -> Tensor:
        """The tokens after the last block's gathering, before its norm, ``[B, 16 + R, D]``."""
        last: Block = self.blocks[-1]  # type: ignore[assignment]
        tokens: Tensor = last.gather(self._before_last(images))
        return tokens

    def _before_last(self, images: Tensor) -> Tensor:
        framed = F.pad(images.unsqueeze(1), (1, 1, 1, 1), value=BACKGROUND)
        embedded = self.embed(framed).flatten(2).transpose(1, 2) + self.positions
        tokens = torch.cat([embedded, self.registers.expand(images.shape[0], -1, -1)], dim=1)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        return tokens


def _spec_of(
    readout: str | regplug.Join, options: Mapping[str, Any] | None, layout: regplug.TokenLayout
) -> tuple[regplug.ReadoutSpec, regplug.TokenLayout]:
    """The readout's spec, and the tokens that it reads."""
    num_tokens = NUM_PATCHES + (layout.num_registers or 0)
    if isinstance(readout, regplug.Join):
        if options:
            got = ", ".join(options)
            raise regplug.SpecError(
                f"backbone 'digits-vit': readout_options: expected each in its part of the join, got {got}."
            )
        return readout.resolve(layout, num_tokens), layout.for_group("tokens", num_tokens)
    if options is None:
        options = READOUT_OPTIONS if readout == READOUT else {}
    if regplug.default_registry().readout_entry(readout).full_name == JOIN:
        layout = layout.for_group("tokens", num_tokens)
    spec = regplug.resolve(readout, num_registers=layout.num_registers, hidden_dim=layout.hidden_dim, **options)
    return spec, layout


class DigitsTokens(nn.Module):
    """Images ``[B, 8, 8]`` -> the token sequence of the last block, ``[B, 16 + R, D]``, after its registers gathered.

    Args:
        model: The network; its weights are shared.
        normalized: Whether to apply the norm that the block applies before its readout.

    Attributes:
        input_shape: One image.
    """

    def __init__(self, model: DigitsViT, normalized: bool) -> None:
        super().__init__()
        self.model = model
        self.normalized = normalized  # the norm is not stored again: a bundle holds no weight under two names
        self.input_shape = (SIDE, SIDE)

    def forward(self, images: Tensor) -> Tensor:
        """The tokens of ``images``."""
        return self.model.last_tokens(images) if self.normalized else self.model.gathered_tokens(images)


def layout_of(model: DigitsViT) -> regplug.TokenLayout:
    """Where the registers of ``model`` sit in its token sequence: at the end, normalised."""
    return model.layout


def describe(model: DigitsViT) -> tuple[None, dict[str, Any]]:
    """The options with which ``DigitsViT`` makes the same network."""
    return None, dict(model.options)


def film_sites(model: DigitsViT) -> list[regplug.FiLMSite]:
    """The kernel of every block, and the FiLM pairs that it takes."""
    return [
        regplug.FiLMSite(
            where=f"blocks.{index}.mixer.kernel",
            features=model.options["kernel_features"],
            num_layers=model.options["num_film_layers"],
        )
        for index in range(len(model.blocks))
    ]
