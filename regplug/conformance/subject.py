"""What is checked: a readout's spec, where its registers sit, and what it is tried with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regplug.bundle.golden import largest_error
from regplug.errors import ConformanceError
from regplug.registry.names import OWN
from regplug.registry.registry import Registry
from regplug.registry.spec import ReadoutSpec

if TYPE_CHECKING:
    from torch import nn

    from regplug.registry.entries import ReadoutEntry
    from regplug.registry.layout import TokenLayout

SEED = 0
BATCHES = (0, 1, 2, 7)
AROUND = 5  # tokens beside the registers where the layout leaves their number open
# how far an answer may be from the truth, as a part of the largest number in it
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}


@dataclass(frozen=True)
class Subject:
    """A readout under check.

    Args:
        spec: What was chosen.
        layout: Where the registers sit in the tokens.
        film: The FiLM generator that it is paired with: a class or ``module:Class``.
        film_options: Its constructor's keywords, the width apart.
        backends: The export backends to try.
        compiler: ``torch.compile``'s backend, ``eager`` or ``inductor``.
        registry: Where names are looked up.
    """

    spec: ReadoutSpec
    layout: TokenLayout
    film: Any
    film_options: Mapping[str, Any] = field(hash=False)
    backends: Sequence[str]
    compiler: str
    registry: Registry

    @property
    def name(self) -> str:
        """The strategy as rows call it."""
        return self.spec.strategy

    @property
    def entry(self) -> ReadoutEntry:
        """What its plugin says of it."""
        return self.spec.entry

    @property
    def is_own(self) -> bool:
        """Whether regplug itself brings the readout, and owes more of it."""
        provenance = self.entry.provenance
        return provenance is not None and provenance.distribution == OWN

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of the readout's weights; torch's default where it has none."""
        floating = (p.dtype for p in self.fresh().parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    @property
    def tolerance(self) -> float:
        """How far two answers in the weights' dtype may be apart, for ``close``."""
        return TOLERANCES.get(self.dtype, 1e-5)

    def fresh(self, seed: int = SEED) -> nn.Module:
        """The readout as built: in train mode, with initial weights of a fixed seed; the global generator stays."""
        with seeded(seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.spec.build()

    def trained(self, seed: int = SEED) -> nn.Module:
        """The readout in eval mode, its weights moved away from their initial values, which may hide a fault."""
        readout = self.fresh(seed).eval()
        move(readout, seed)
        return readout

    def answer(self, readout: nn.Module, registers: Tensor) -> Tensor:
        """What a readout gives, without gradients. What it draws at random, it draws the same every time.

        Raises:
            ConformanceError: It is no tensor.
        """
        with torch.no_grad():
            return seeded_answer(readout, registers)

    def registers(self, batch: int, seed: int = SEED, dtype: torch.dtype | None = None) -> Tensor:
        """Registers ``[batch, R, D]``, of the readout's dtype or another, the same every time."""
        generator = torch.Generator().manual_seed(1000 * seed + batch)
        shape = (batch, self.spec.num_registers, self.spec.hidden_dim)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype or self.dtype)

    def tokens(self, batch: int) -> Tensor:
        """Tokens ``[batch, T, D]`` that fit the layout, the same every time."""
        length = self.layout.num_tokens or self.layout.min_tokens + AROUND
        generator = torch.Generator().manual_seed(batch)
        shape = (batch, length, self.layout.hidden_dim)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)


def own_plugins(spec: ReadoutSpec, registry: Registry) -> Registry:
    """regplug and the readout's own distribution: what no other plugin can spoil."""
    provenance = spec.entry.provenance
    return registry.only(OWN, *([provenance.distribution] if provenance is not None else []))


def registry_for(spec: ReadoutSpec, registry: Registry, backend: str) -> Registry:
    """Where an export backend's name is looked up: among ``own_plugins`` first."""
    own = own_plugins(spec, registry)
    return own if any(one.name == backend for one in own.export_backend_entries()) else registry


@contextmanager
def seeded(seed: int = SEED) -> Iterator[None]:
    """The CPU's random numbers start at ``seed`` here, and go on outside as if nothing had happened."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def seeded_answer(readout: nn.Module, registers: Tensor) -> Tensor:
    """As ``Subject.answer``, with gradients where they are enabled."""
    with seeded():
        output = readout(registers)
    if not isinstance(output, Tensor):
        raise ConformanceError(f"answer: expected a tensor, got {type(output).__name__}.")
    return output


def move(module: nn.Module, seed: int = SEED) -> None:
    """Move weights away from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                step = torch.randn(parameter.shape, generator=generator)
                parameter.add_((0.2 * step).to(parameter))


def same_bits(got: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors are the same in dtype, shape and every bit; a NaN is then equal to itself."""
    if got.dtype != wanted.dtype or got.shape != wanted.shape:
        return False
    flat = [tensor.detach().reshape(-1).view(torch.uint8) for tensor in (got, wanted)]
    return torch.equal(*flat)


def close(what: str, got: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Refuse outputs that differ by more than ``tolerance`` of the largest number that is wanted.

    Raises:
        ConformanceError: They do, or have other shapes or dtypes, or are not finite.
    """
    if not isinstance(got, Tensor):
        raise ConformanceError(f"{what}: expected a tensor, got {type(got).__name__}.")
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise ConformanceError(
            f"{what}: expected {wanted.dtype} {list(wanted.shape)}, got {got.dtype} {list(got.shape)}."
        )
    scale = max(wanted.detach().abs().max().item(), 1e-6) if wanted.numel() else 1.0
    error = largest_error([got.detach()], [wanted.detach()])
    if not error <= tolerance * scale:
        raise ConformanceError(
            f"{what}: expected outputs within {tolerance * scale:.3g}, got a difference of {error:.3g}."
        )
