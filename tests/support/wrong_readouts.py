"""Readouts and FiLM generators that are wrong in one way each, the right one that they extend, and helpers.

It has no ``from __future__ import annotations``: TorchScript could not read ``Final[...]``.
"""

import random
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regplug import ReadoutEntry, Registry, ShapeError
from regplug.conformance import Subject, subject_of
from regplug.conformance.check import FAILED, run_check
from regplug.nn.film import KernelFiLMGenerator
from regplug.nn.readouts.checks import check_registers, in_dtype_of
from support.plugins import Plugin
from support.strategies import D, R

WIDTH = 6


def registry_of(build: Any, *, own: bool = True, films: Any = (), sizes: Any = None) -> tuple[Registry, str]:
    """A registry with one readout, and its full name; ``own`` registers it as regplug's."""
    registry, distribution = Registry({}), "regplug" if own else "acme"
    registry.register(Plugin(ReadoutEntry("wrong", build, sizes=sizes or {}), *films), distribution)
    return registry, f"{distribution}:wrong"


def subject_for(
    build: Any, *, own: bool = True, sizes: Any = None, options: Any = None, backends: Any = (), **subject: Any
) -> Subject:
    """A subject of a class, at R = 4 and D = 24; it finds plugins' FiLM generators unless a registry is given."""
    registry, name = registry_of(build, own=own, sizes=sizes)
    spec = registry.resolve(name, num_registers=R, hidden_dim=D, **(options or {}))
    return subject_of(spec, backends=backends, **{"compiler": "eager", **subject})


def failing(subject: Subject, checks: Any) -> set[str]:
    """The names of the checks that fail."""
    return {check.name for check in checks if run_check(check, subject).verdict == FAILED}


class Right(nn.Module):
    """Passes every check; each wrong readout differs from it in one way."""

    num_registers: Final[int]
    hidden_dim: Final[int]
    out_dim: Final[int]

    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__()
        self.num_registers = num_registers
        self.hidden_dim = hidden_dim
        self.out_dim = WIDTH
        self.map = nn.Linear(num_registers * hidden_dim, WIDTH)

    def flop_count(self, hidden_dim: int) -> int:
        return 2 * self.num_registers * hidden_dim * WIDTH + WIDTH

    def forward(self, registers: Tensor) -> Tensor:
        check_registers(registers, "readout 'right'", self.num_registers, self.hidden_dim)
        return self.read(in_dtype_of(self.map.weight, registers))

    def read(self, registers: Tensor) -> Tensor:
        return self.map(registers.flatten(1))


# ---- constructor


class SwallowsOptions(Right):
    def __init__(self, num_registers: int, hidden_dim: int, **options: Any) -> None:
        super().__init__(num_registers, hidden_dim)


class GrowsWithEachBuild(Right):
    builds = 0

    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__(num_registers, hidden_dim)
        type(self).builds += 1
        self.more = nn.Linear(num_registers * hidden_dim, 2 + self.builds)

    def flop_count(self, hidden_dim: int) -> int:
        return super().flop_count(hidden_dim) + 2 * self.more.weight.numel()

    def read(self, registers: Tensor) -> Tensor:
        return super().read(registers) + self.more(registers.flatten(1)).tanh().sum(1, keepdim=True)


class DrawsElsewhere(Right):
    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__(num_registers, hidden_dim)
        nn.init.uniform_(self.map.bias, 0.0, random.random())


class NamesWithEachBuild(Right):
    builds = 0

    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__(num_registers, hidden_dim)
        type(self).builds += 1
        self.register_buffer(f"mark_{self.builds}", torch.zeros(1))


class BuildsAnotherClass(Right):
    def __new__(cls, num_registers: int, hidden_dim: int) -> Any:
        return Right(num_registers, hidden_dim)


# ---- answers


class ShardsLargeBatches(Right):
    def read(self, registers: Tensor) -> Tensor:
        if len(registers) > 32:
            return torch.stack([super(ShardsLargeBatches, self).read(part) for part in registers.chunk(2)])
        return super().read(registers)


class GivesTheInsideToo(Right):
    def read(self, registers: Tensor) -> Any:
        output = super().read(registers)
        return output if registers.is_meta else (output, registers)


class CastsToFloat32(Right):
    def read(self, registers: Tensor) -> Tensor:
        return F.linear(registers.flatten(1).float(), self.map.weight.float(), self.map.bias.float())


class CastsToFloat32AndBack(CastsToFloat32):
    def read(self, registers: Tensor) -> Tensor:
        return super().read(registers).to(registers.dtype)


class MultipliesByFloat32(Right):
    def read(self, registers: Tensor) -> Tensor:
        return super().read(registers) * torch.ones(WIDTH, device=registers.device)


class TurnsByFloat32(Right):
    def flop_count(self, hidden_dim: int) -> int:
        return super().flop_count(hidden_dim) + 2 * WIDTH * WIDTH

    def read(self, registers: Tensor) -> Tensor:
        return super().read(registers) @ torch.eye(WIDTH, device=registers.device)


class RoundsIn16Bits(Right):
    def read(self, registers: Tensor) -> Tensor:
        output = super().read(registers)
        return output if output.dtype == torch.float64 else output.bfloat16().to(output.dtype)


class WiderInTraining(Right):
    def read(self, registers: Tensor) -> Tensor:
        output = super().read(registers)
        return torch.cat([output, output], dim=1) if self.training else output


class SaysAnotherWidthWhenReal(Right):
    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__(num_registers, hidden_dim)
        self.out_dim = WIDTH + (not self.map.weight.is_meta)


class SomethingForNothing(Right):
    def read(self, registers: Tensor) -> Tensor:
        return super().read(registers if len(registers) else registers.new_zeros(1, R, D))


class RefusesNothing(Right):
    def read(self, registers: Tensor) -> Tensor:
        if len(registers) == 0:
            raise ValueError("an empty batch")
        return super().read(registers)


class Squeezes(Right):
    def read(self, registers: Tensor) -> Tensor:
        return super().read(registers).squeeze()


class DividesByTheOthers(Right):
    def read(self, registers: Tensor) -> Tensor:
        others = torch.full((), float(len(registers) - 1), dtype=registers.dtype, device=registers.device)
        return super().read(registers) * (others / others)


class HalvesTheBatch(Right):
    def read(self, registers: Tensor) -> Tensor:
        half = max(len(registers) // 2, 1)
        parts = (registers[:half], registers[half : 2 * half])
        return torch.cat([super(HalvesTheBatch, self).read(part) for part in parts])


class CentersTheBatch(Right):
    def read(self, registers: Tensor) -> Tensor:
        output = super().read(registers)
        return output - 0.5 * output.mean(0)


class CountsTheSamples(Right):
    def read(self, registers: Tensor) -> Tensor:
        place = torch.arange(len(registers), device=registers.device, dtype=registers.dtype)
        return super().read(registers) + place[:, None]


class LeavesDropoutOn(Right):
    def read(self, registers: Tensor) -> Tensor:
        return F.dropout(super().read(registers), 0.5)


class CountsItsCalls(Right):
    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__(num_registers, hidden_dim)
        self.register_buffer("calls", torch.zeros(()))

    def read(self, registers: Tensor) -> Tensor:
        if not registers.is_meta:
            self.calls.add_(1)
        return super().read(registers)


class Remembers(Right):
    before = 0.0

    def read(self, registers: Tensor) -> Tensor:
        output = super().read(registers) * (1 + 2e-7 * self.before)
        if registers.numel() and not registers.is_meta:
            self.before = registers.detach().abs().max().item()
        return output


class ScalesInPlace(Right):
    def read(self, registers: Tensor) -> Tensor:
        return super().read(registers.mul_(0.5))


class ScalesInPlaceInTraining(Right):
    def read(self, registers: Tensor) -> Tensor:
        return super().read(registers.mul_(0.5) if self.training else registers * 0.5)


class Views(Right):
    def read(self, registers: Tensor) -> Tensor:
        return self.map(registers.view(len(registers), R * D))


class CountsOnMemory(Right):
    def read(self, registers: Tensor) -> Tensor:
        stride = registers.stride(0)  # reads this stride and assumes the others
        return self.map(registers.as_strided((len(registers), R * D), (stride, 1)))


# ---- refusals


class AnyNumber(nn.Module):
    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.map = nn.Linear(hidden_dim, WIDTH)

    def forward(self, registers: Tensor) -> Tensor:
        check_registers(registers, f"[B, {R}, {D}]", registers.shape[-2] if registers.dim() > 1 else 0, D)
        return self.map(in_dtype_of(self.map.weight, registers).mean(1))


class AnyWidth(nn.Module):
    def __init__(self, num_registers: int) -> None:
        super().__init__()
        self.map = nn.Linear(num_registers, WIDTH)

    def forward(self, registers: Tensor) -> Tensor:
        width = registers.shape[-1] if registers.dim() == 3 and registers.shape[2] != R else D
        check_registers(registers, f"[B, {R}, {D}]", R, width)
        return self.map(in_dtype_of(self.map.weight, registers).mean(2))


class AnyRank(Right):
    def forward(self, registers: Tensor) -> Tensor:
        if registers.dim() == 3:
            check_registers(registers, "readout", R, D)
        return self.read(in_dtype_of(self.map.weight, registers).reshape(-1, R, D))


class Promotes(Right):
    def forward(self, registers: Tensor) -> Tensor:
        check_registers(registers, "readout", R, D)
        return (registers.flatten(1).unsqueeze(1) * self.map.weight).sum(2) + self.map.bias


class CastsInside(Right):
    def read(self, registers: Tensor) -> Tensor:
        weights = registers.sum(2).softmax(1, dtype=torch.float32).to(registers.dtype)
        return super().read(registers * weights.unsqueeze(2))


class ReadsIntegersAnotherWay(Right):
    def forward(self, registers: Tensor) -> Tensor:
        return super().forward(registers if registers.is_floating_point() else registers + 1)


class SaysTooLittle(Right):
    def forward(self, registers: Tensor) -> Tensor:
        if registers.shape[1:] != (R, D) or registers.dim() != 3:
            raise ShapeError("registers: wrong shape.")
        return super().forward(registers)


class SaysItByAnotherError(Right):
    def forward(self, registers: Tensor) -> Tensor:
        try:
            return super().forward(registers)
        except ShapeError as error:
            raise TypeError(str(error)) from error


# ---- training


class CountsOneRegisterMore(Right):
    """Its ``num_registers`` is not the layout's."""

    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__(num_registers, hidden_dim)
        self.num_registers = num_registers + 1

    def flop_count(self, hidden_dim: int) -> int:
        return 2 * R * hidden_dim * WIDTH

    def forward(self, registers: Tensor) -> Tensor:
        check_registers(registers, "readout", R, D)
        return self.read(in_dtype_of(self.map.weight, registers))


class WiderWhenReal(Right):
    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__(num_registers, hidden_dim)
        if not self.map.weight.is_meta:
            self.out_dim = WIDTH + 1
            self.map = nn.Linear(num_registers * hidden_dim, WIDTH + 1)


class Detaches(Right):
    def read(self, registers: Tensor) -> Tensor:
        return F.linear(registers.flatten(1), self.map.weight, self.map.bias.detach())


class DetachesRegisters(Right):
    def read(self, registers: Tensor) -> Tensor:
        return super().read(registers.detach())


class DetachesAll(Right):
    def read(self, registers: Tensor) -> Tensor:
        return super().read(registers).detach()


class DetachesAllButTheFirst(Right):
    def read(self, registers: Tensor) -> Tensor:
        return super().read(torch.cat([registers[:1], registers[1:].detach()]))


class Forgets(Right):
    def __init__(self, num_registers: int, hidden_dim: int) -> None:
        super().__init__(num_registers, hidden_dim)
        self.spare = nn.Parameter(torch.zeros(WIDTH))


class MultipliesByZero(Forgets):
    def read(self, registers: Tensor) -> Tensor:
        return super().read(registers) + 0.0 * self.spare


class RootsOfZero(Forgets):
    def read(self, registers: Tensor) -> Tensor:
        return super().read(registers) + (0.0 * self.spare).abs().sqrt()


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        return given.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


class GoesBackTwice(Right):
    def read(self, registers: Tensor) -> Tensor:
        return Twice.apply(super().read(registers))


class DetachesAPath(Right):
    def read(self, registers: Tensor) -> Tensor:
        return super().read(registers) + F.linear(registers.flatten(1), self.map.weight.detach())

    def flop_count(self, hidden_dim: int) -> int:
        return 2 * super().flop_count(hidden_dim)


class DetachesInEval(Right):
    def read(self, registers: Tensor) -> Tensor:
        output = super().read(registers)
        return output if self.training else output.detach()


class CountsAMultiplyAddOnce(Right):
    def flop_count(self, hidden_dim: int) -> int:
        return super().flop_count(hidden_dim) // 2


class CountsTwice(Right):
    def flop_count(self, hidden_dim: int) -> int:
        return 2 * super().flop_count(hidden_dim)


class CountsABatch(Right):
    def flop_count(self, hidden_dim: int) -> int:
        return 64 * super().flop_count(hidden_dim)


class CountsInFractions(Right):
    def flop_count(self, hidden_dim: int) -> Any:
        return float(super().flop_count(hidden_dim))


# ---- FiLM generators; subclasses of a known family count as gamma, gamma first


class ShiftFirst(KernelFiLMGenerator):
    def forward(self, conditioning: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(beta, gamma) for gamma, beta in super().forward(conditioning)]


class OnePlusGamma(KernelFiLMGenerator):
    def forward(self, conditioning: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(gamma - 1, beta) for gamma, beta in super().forward(conditioning)]


class NarrowBeta(KernelFiLMGenerator):
    def forward(self, conditioning: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(gamma, beta[:, :1]) for gamma, beta in super().forward(conditioning)]


class OneTensor(KernelFiLMGenerator):
    def forward(self, conditioning: Tensor) -> Any:
        return self.mlp(conditioning)


class Drawn(nn.Module):
    """Starts with random pairs, which show neither form nor order."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.cond_dim = cond_dim
        self.map = nn.Linear(cond_dim, 8)

    def forward(self, conditioning: Tensor) -> list[tuple[Tensor, Tensor]]:
        first, second = self.map(conditioning).chunk(2, dim=1)
        return [(first, second)]


class Zeroed(Drawn):
    """Starts at (0, 0)."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__(cond_dim)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)


class Modulates(nn.Module):
    """Applies FiLM itself."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.cond_dim = cond_dim
        self.map = nn.Linear(cond_dim, 8)

    def forward(self, features: Tensor, conditioning: Tensor) -> Tensor:
        scale, shift = self.map(conditioning).chunk(2, dim=1)
        return features * (1 + scale) + shift
