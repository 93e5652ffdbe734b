"""What turns a conditioning vector into a prediction: a linear layer, or the user's FiLM generator over the patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regplug.errors import SpecError
from regplug.nn.pairing import check_gives_pairs, convention_of, named_film, pair
from regplug.registry.default import default_registry
from regplug.registry.references import Reference
from regplug.registry.registry import Registry
from regplug.registry.spec import ReadoutSpec

# added to variances: registers may differ by little from sample to sample, but by more than float32 rounds
EPS = 1e-10


class LinearHead(nn.Module):
    """``W norm(c)``: features of mean 0 and deviation 1 over the training batches, then one layer.

    Without the norm the best learning rate depends on the readout's scale (as in MAE's linear probe, He et al., 2022).

    Args:
        width: Of the vector.
        outputs: Classes, or numbers to predict.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, EPS, affine=False)
        self.linear = nn.Linear(width, outputs)

    def forward(self, conditioning: Tensor, patches: Tensor | None) -> Tensor:
        """``[B, width] -> [B, outputs]``."""
        found: Tensor = self.linear(self.norm(conditioning))
        return found


class FiLMHead(nn.Module):
    """The mean of the patches through layers that the generator's pairs modulate, then one linear layer.

    Here the prediction has a path besides the conditioning, as in a conditioned network.

    Args:
        generator: ``[B, cond_dim] -> [(gamma, beta), ...]``.
        hidden_dim: Width of the patches, D.
        outputs: Classes, or numbers to predict.
        registry: Where generators' families are looked up.
    """

    def __init__(self, generator: nn.Module, cond_dim: int, hidden_dim: int, outputs: int, registry: Registry) -> None:
        super().__init__()
        convention = convention_of(generator, registry=registry)
        self.adds_one = convention.form == "1+gamma"
        self.shift_first = convention.order == "shift-first"
        self.norm = nn.BatchNorm1d(hidden_dim, EPS, affine=False)
        self.generator = generator
        with torch.no_grad():
            widths = [first.shape[1] for first, _ in generator(torch.zeros(2, cond_dim))]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip([hidden_dim, *widths], widths, strict=False))
        self.linear = nn.Linear(widths[-1], outputs)

    def forward(self, conditioning: Tensor, patches: Tensor | None) -> Tensor:
        """``[B, cond_dim]`` and patches ``[B, D]`` -> ``[B, outputs]``."""
        if patches is None:
            raise SpecError("head 'film': expected the mean of the patches, got none.")
        features = self.norm(patches)
        for layer, (first, second) in zip(self.layers, self.generator(conditioning), strict=True):
            gamma, beta = (second, first) if self.shift_first else (first, second)
            gamma = 1 + gamma if self.adds_one else gamma
            features = nn.functional.gelu(gamma * layer(features) + beta)
        found: Tensor = self.linear(features)
        return found


class Head:
    """How heads are made: ``linear``, or by a FiLM generator.

    Args:
        film: A generator's registered name, class or ``"module:Class"``; None for a linear head.
        film_options: Its options, without the width.
        registry: Where names are looked up; the installed plugins when None.
    """

    def __init__(
        self,
        film: Reference | None = None,
        film_options: Mapping[str, Any] | None = None,
        registry: Registry | None = None,
    ) -> None:
        self.film = film
        self.film_options = dict(film_options or {})
        self.registry = registry
        if film is not None:
            check_gives_pairs(film, registry or default_registry())

    @property
    def code(self) -> Reference | None:
        """The generator's class, or where it is; None for a linear head."""
        if not isinstance(self.film, str):
            return self.film
        family = named_film(self.film, self.registry)
        return self.film if family is None else family.build

    def build(self, spec: ReadoutSpec, outputs: int) -> nn.Module:
        """A head for the spec's vectors."""
        if self.film is None:
            return LinearHead(spec.cond_dim, outputs)
        registry = self.registry or default_registry()
        generator = pair(spec, self.film, registry=registry, **self.film_options)
        return FiLMHead(generator, spec.cond_dim, spec.hidden_dim, outputs, registry)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        if self.film is None:
            return {"head": "linear"}
        film = self.film if isinstance(self.film, str) else f"{self.film.__module__}:{self.film.__qualname__}"
        return {"head": "film", "film": film, "film_options": self.film_options}
