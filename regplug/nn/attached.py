"""The modules that ``attach`` makes: a backbone, and on top of it a readout or a conditioner."""

# TorchScript compiles forward(), so its annotations are not postponed
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from regplug.errors import RegplugError
from regplug.nn.conditioner import Conditioner
from regplug.nn.shared_tensors import Origin
from regplug.nn.token_reader import Mask, TokenReader, Vectors
from regplug.nn.wrappers import unwrapped
from regplug.registry.entries import BackboneEntry
from regplug.registry.layout import TokenLayout
from regplug.registry.spec import ReadoutSpec


@dataclass(frozen=True)
class BackboneSource:
    """The backbone inside an attached module, so that a bundle can name it and build it again.

    Args:
        entry: The backbone, and the distribution that offers it.
        model: Which of its models; None for its default.
        options: The other arguments that it was built with, as JSON values.
        normalized: Whether the final norm is applied to the tokens.
    """

    entry: BackboneEntry
    model: str | None
    options: Mapping[str, Any]
    normalized: bool


class Attached(nn.Module):
    """The part that ``AttachedReadout`` and ``AttachedConditioner`` share.

    Attributes:
        frozen: Whether the backbone stays in eval mode when ``train`` is called.
    """

    def __init__(
        self, tokens: nn.Module, layout: TokenLayout, spec: ReadoutSpec, source: BackboneSource | RegplugError
    ) -> None:
        super().__init__()
        self.layout = layout
        self.spec = spec
        self.source = source
        self.tokens = tokens
        self.frozen = False
        self.origin = Origin()

    def train(self, mode: bool = True) -> "Attached":
        """Set the mode of every part, as ``nn.Module`` does; a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.tokens.eval()
        return self

    def freeze(self) -> None:
        """Keep the backbone in eval mode from now on, and its weights unchanged: they get no gradients.

        The weights are the model's own, so they get no gradients there either.
        """
        self.frozen = True
        self.tokens.eval().requires_grad_(False)


class AttachedReadout(Attached, TokenReader):
    """Inputs of a model -> conditioning vector ``[B, cond_dim]``; ``attach`` makes it.

    Keys are ``tokens.*``, which are the model's own weights and not copies, and ``readout.*``.

    Args:
        tokens: From the model's inputs to tokens ``[B, T, D]``.
        layout: Where the registers sit in them.
        readout: ``[B, R, D] -> [B, cond_dim]``.
        spec: What the readout was built from.
        source: What the backbone was built from, or the error that says why this is not known.
    """

    def __init__(
        self,
        tokens: nn.Module,
        layout: TokenLayout,
        readout: nn.Module,
        spec: ReadoutSpec,
        source: BackboneSource | RegplugError,
    ) -> None:
        super().__init__(tokens, layout, spec, source)
        self._set_readout(layout, readout)

    def forward(self, inputs: Tensor, mask: Mask = None, vectors: Vectors = None) -> Tensor:
        """The conditioning vector for ``inputs``, images ``[B, C, H, W]`` for most backbones.

        Args:
            inputs: What the model takes.
            mask: ``[B, T]``, bool, true where one of the model's T tokens counts, if the readout takes a mask: patches
                of an object alone, for example. The model itself does not see it.
            vectors: For each vector of a join its name and ``[B, width]``.

        Raises:
            ShapeError: The tokens are not what the layout says, or the readout takes no mask or no vectors.
            SpecError: Modules of the model were replaced after ``attach``.
        """
        if not is_scripting():
            self.origin.check()
        return self._read(self.tokens(inputs), mask, vectors)


class AttachedConditioner(Attached):
    """Inputs of a model -> FiLM pairs, gamma first; ``attach`` makes it when a FiLM generator is given.

    Keys are ``tokens.*``, which are the model's own weights and not copies, ``conditioner.readout.*`` and
    ``conditioner.film.*``.

    Args:
        tokens: From the model's inputs to tokens ``[B, T, D]``.
        conditioner: ``[B, T, D] -> [(gamma, beta), ...]``.
        spec: What the readout was built from.
        source: What the backbone was built from, or the error that says why this is not known.
    """

    def __init__(
        self, tokens: nn.Module, conditioner: Conditioner, spec: ReadoutSpec, source: BackboneSource | RegplugError
    ) -> None:
        super().__init__(tokens, conditioner.layout, spec, source)
        self.conditioner = conditioner

    def forward(self, inputs: Tensor, mask: Mask = None, vectors: Vectors = None) -> list[tuple[Tensor, Tensor]]:
        """One ``(gamma, beta)`` per FiLM layer, each ``[B, width]``, for ``inputs``.

        Args:
            inputs: What the model takes.
            mask: As for ``AttachedReadout``.
            vectors: For each vector of a join its name and ``[B, width]``.

        Raises:
            ShapeError: The tokens are not what the layout says, or the readout takes no mask or no vectors.
            SpecError: Modules of the model were replaced after ``attach``.
        """
        if not is_scripting():
            self.origin.check()
        pairs: list[tuple[Tensor, Tensor]] = self.conditioner(self.tokens(inputs), mask, vectors)
        return pairs


ATTACHED = (AttachedReadout, AttachedConditioner)


def conditioner_of(module: nn.Module) -> Conditioner | None:
    """The conditioner that a module is, or that is attached to a backbone in it; None for a readout."""
    module = unwrapped(module.conditioner) if isinstance(module, AttachedConditioner) else module
    return module if isinstance(module, Conditioner) else None
