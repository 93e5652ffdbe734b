"""A readout under check: its spec, the positions of its registers, and the inputs it is tried with."""

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
from regplug.conformance.vector_inputs import of_registers
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
ANY_COUNT = 4  # registers for a readout of any number of them
OTHER_TOKENS = 5  # next to the registers, where the layout leaves their number open
# how far an answer may be from the truth, as a fraction of the largest number in it
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}


@dataclass(frozen=True)
class Subject:
    """A readout under check.

    Args:
        spec: What was chosen.
        layout: Where the registers are among the tokens.
        film: The FiLM generator that it is paired with: a class or ``module:Class``.
        film_options: Its constructor's keywords, except the width.
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
        """The strategy's full name, as results show it."""
        return self.spec.strategy

    @property
    def entry(self) -> ReadoutEntry:
        """The entry that registers it."""
        return self.spec.entry

    @cached_property
    def num_registers(self) -> int:
        """How many registers it is tried with: R, or some number if it takes any."""
        if self.spec.num_registers is not None:
            return self.spec.num_registers
        return max(ANY_COUNT, getattr(self.fresh(), "min_tokens", 1))

    @property
    def is_own(self) -> bool:
        """Whether regplug itself provides the readout; such a readout must do more."""
        provenance = self.entry.provenance
        return provenance is not None and provenance.distribution == OWN

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of the readout's weights; torch's default if it has none."""
        floating = (p.dtype for p in self.fresh().parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    @property
    def tolerance(self) -> float:
        """How far two answers in the weights' dtype may differ, for ``close``."""
        return TOLERANCES.get(self.dtype, 1e-5)

    def built(self, seed: int = SEED) -> nn.Module:
        """What the spec builds, with initial weights of a fixed seed; global random numbers are not used up."""
        with seeded(seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.spec.build()

    def fresh(self, seed: int = SEED) -> nn.Module:
        """A new readout of registers alone, in train mode: what is built, or a join that gets vectors made of them."""
        return of_registers(self.built(seed))

    def trained(self, seed: int = SEED) -> nn.Module:
        """A new readout in eval mode, its weights moved away from their initial values, which may hide a fault."""
        readout = self.fresh(seed).eval()
        move_weights(readout, seed)
        return readout

    def answer(self, readout: nn.Module, registers: Tensor) -> Tensor:
        """The output of a readout, without gradients; random numbers that it draws are the same every time.

        Raises:
            ConformanceError: It is not a tensor.
        """
        with torch.no_grad():
            return seeded_answer(readout, registers)

    def registers(self, batch: int, seed: int = SEED, dtype: torch.dtype | None = None) -> Tensor:
        """Registers ``[batch, R, D]``, of the readout's dtype or another, the same every time."""
        generator = torch.Generator().manual_seed(1000 * seed + batch)
        shape = (batch, self.num_registers, self.spec.hidden_dim)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype or self.dtype)

    def tokens(self, batch: int) -> Tensor:
        """Tokens ``[batch, T, D]`` that fit the layout, the same every time."""
        length = self.layout.num_tokens or self.layout.min_tokens + OTHER_TOKENS
        generator = torch.Generator().manual_seed(batch)
        shape = (batch, length, self.layout.hidden_dim)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)


def own_plugins(spec: ReadoutSpec, registry: Registry) -> Registry:
    """A registry of regplug and the readout's own distribution, which no other plugin can break."""
    provenance = spec.entry.provenance
    return registry.only(OWN, *([provenance.distribution] if provenance is not None else []))


def registry_for(spec: ReadoutSpec, registry: Registry, backend: str) -> Registry:
    """The registry to look an export backend up in: ``own_plugins`` if they offer it, else ``registry``."""
    own = own_plugins(spec, registry)
    return own if any(one.name == backend for one in own.export_backend_entries()) else registry


@contextmanager
def seeded(seed: int = SEED) -> Iterator[None]:
    """Start the CPU's random numbers at ``seed`` inside the block; outside they continue undisturbed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def seeded_answer(readout: nn.Module, registers: Tensor) -> Tensor:
    """As ``Subject.answer``, with gradients if they are enabled."""
    with seeded():
        output = readout(registers)
    if not isinstance(output, Tensor):
        raise ConformanceError(f"answer: expected a tensor, got {type(output).__name__}.")
    return output


def move_weights(module: nn.Module, seed: int = SEED) -> None:
    """Move weights away from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                step = torch.randn(parameter.shape, generator=generator)
                parameter.add_((0.2 * step).to(parameter))


def same_bits(got: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits; so a NaN is equal to itself."""
    if got.dtype != wanted.dtype or got.shape != wanted.shape:
        return False
    flat = [tensor.detach().reshape(-1).view(torch.uint8) for tensor in (got, wanted)]
    return torch.equal(*flat)


def close(what: str, got: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Refuse an output that differs from ``wanted`` by more than ``tolerance`` times the largest number in ``wanted``.

    Raises:
        ConformanceError: It does, or has another shape or dtype, or is not finite.
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
