"""The backbone ``digits-vit``: registers see the image, and draw the kernels that read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regplug

from .data import BACKGROUND, NUM_CLASSES, SIDE
from .kernel import FiLMPairs, SirenKernel, convolve
from .plugin import READOUT, READOUT_OPTIONS

PATCH = 2
GRID = SIDE // PATCH
NUM_PATCHES = GRID * GRID
JOIN = "regplug:join"


class RegisterGather(nn.Module):
    """Registers attend over all tokens and add what they find; patch tokens stay as they are.

    Keys and values pass a hidden layer first: the registers' view of a patch need not be linear in its pixels, unlike
    the patch itself.
    """

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.RMSNorm(hidden_dim)
        self.query = nn.Linear(hidden_dim, hidden_dim)
        self.key_value = nn.Sequential(
            nn.Linear(hidden_dim, 2 * hidden_dim), nn.GELU(), nn.Linear(2 * hidden_dim, 2 * hidden_dim)
        )
        self.out = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``[B, T, D]`` to ``[B, T, D]``."""
        normed = self.norm(tokens)
        query = self._heads(self.query(normed[:, NUM_PATCHES:]))
        key, value = (self._heads(part) for part in self.key_value(normed).chunk(2, dim=-1))
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return torch.cat([tokens[:, :NUM_PATCHES], tokens[:, NUM_PATCHES:] + self.out(found)], dim=1)

    def _heads(self, tokens: Tensor) -> Tensor:
        heads: Tensor = tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads


class KernelMixer(nn.Module):
    """Mix patches by a convolution over their grid, ``y = W_out conv(W_in x, k)``, with a drawn kernel k.

    Linear in x, so without Hyena's gates: with products of patches here, the network classifies nearly as many digits
    from its patches alone, and its registers hardly matter.
    """

    def __init__(self, hidden_dim: int, features: int, num_layers: int) -> None:
        super().__init__()
        self.into = nn.Linear(hidden_dim, hidden_dim)
        self.kernel = SirenKernel(hidden_dim, GRID, features, num_layers)
        self.out = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, patches: Tensor, pairs: FiLMPairs) -> Tensor:
        """Mix ``[B, N, D]`` by the kernels that ``pairs`` modulate."""
        grid = self.into(patches).transpose(1, 2).unflatten(2, (GRID, GRID))
        mixed: Tensor = self.out(convolve(grid, self.kernel(pairs)).flatten(2).transpose(1, 2))
        return mixed


class Block(nn.Module):
    """Registers gather and are read into a conditioning vector, by which the patches are mixed.

    A join reads patches too. Patch tokens never attend to registers, and only the mixer changes them: the registers
    affect the class through the kernel alone, and for a fixed conditioning vector the patches' path is linear.

    Args:
        spec: The readout's spec.
        layout: Which tokens the readout reads.
        num_heads: Heads of the registers' attention.
        kernel_features: Width of the kernel's sine layers.
        num_film_layers: Modulated sine layers of the kernel.
    """

    def __init__(
        self,
        spec: regplug.ReadoutSpec,
        layout: regplug.TokenLayout,
        num_heads: int,
        kernel_features: int,
        num_film_layers: int,
    ) -> None:
        super().__init__()
        width = spec.hidden_dim
        self.gather = RegisterGather(width, num_heads)
        self.norm = nn.RMSNorm(width)
        self.select = regplug.SelectRegisters(layout)
        self.readout = spec.build()
        # not the identity: the readout would get no gradient in the first step
        self.film = regplug.pair(
            spec,
            regplug.KernelFiLMGenerator,
            kernel_hidden_dim=kernel_features,
            num_film_layers=num_film_layers,
            init_type="small_random",
            init_std=0.1,
        )
        self.mixer = KernelMixer(width, kernel_features, num_film_layers)
        self.mlp = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor, conditioning: Tensor | None = None) -> Tensor:
        """Map ``[B, T, D]`` to ``[B, T, D]``; ``conditioning`` replaces the readout's output."""
        tokens = self.gather(tokens)
        if conditioning is None:
            conditioning = self.readout(self.select(self.norm(tokens)))
        patches, registers = tokens[:, :NUM_PATCHES], tokens[:, NUM_PATCHES:]
        patches = patches + self.mixer(patches, self.film(conditioning))
        return torch.cat([patches, registers + self.mlp(registers)], dim=1)

    def read_tokens(self, tokens: Tensor) -> Tensor:
        """The sequence in which this block's readout finds its registers, ``[B, T, D]``."""
        normed: Tensor = self.norm(self.gather(tokens))
        return normed


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
