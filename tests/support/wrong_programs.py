"""Readouts that are wrong in one way each, with the names of the checks that must fail; two wrong backends."""

import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

import regplug
from regplug.backends.torchscript import TorchScriptBackend
from support.plugins import installed_with


class Scales(nn.Module):
    """A right readout; the others differ from it in what their names say."""

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.out_dim = hidden_dim
        self.scale = nn.Parameter(torch.ones(hidden_dim))

    def forward(self, registers: Tensor) -> Tensor:
        return registers.mean(1) * self.scale


class RefusesNoSamples(Scales):
    """Right for these checks; another check tries an empty batch."""

    def forward(self, registers: Tensor) -> Tensor:
        if registers.shape[0] == 0:
            raise ValueError("expected at least one sample")
        return registers.mean(1) * self.scale


class IsHalf(Scales):
    """Right: its rounding is that of its dtype."""

    def __init__(self, hidden_dim: int):
        super().__init__(hidden_dim)
        self.to(torch.bfloat16)


# ---- storage


class DrawsANumber(Scales):
    def __init__(self, hidden_dim: int):
        super().__init__(hidden_dim)
        self.factor = float(torch.rand((), device="cpu"))

    def forward(self, registers: Tensor) -> Tensor:
        return registers.mean(1) * self.scale * self.factor


class DrawsAPlainTensor(Scales):
    def __init__(self, hidden_dim: int):
        super().__init__(hidden_dim)
        self.drawn = torch.rand(hidden_dim)

    def forward(self, registers: Tensor) -> Tensor:
        return registers.mean(1) * self.scale + self.drawn


class ForgetsItsStatistic(Scales):
    def __init__(self, hidden_dim: int):
        super().__init__(hidden_dim)
        self.register_buffer("seen", torch.zeros(hidden_dim), persistent=False)

    def forward(self, registers: Tensor) -> Tensor:
        if self.training:
            self.seen += registers.mean((0, 1))
        return registers.mean(1) * self.scale - self.seen


class HidesATable(Scales):
    def __init__(self, hidden_dim: int):
        super().__init__(hidden_dim)
        self.register_buffer("table", torch.arange(hidden_dim).float(), persistent=False)

    def forward(self, registers: Tensor) -> Tensor:
        return registers.mean(1) * self.scale + self.table


class TiesItsWeights(Scales):
    def __init__(self, hidden_dim: int):
        super().__init__(hidden_dim)
        self.first, self.second = nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim)
        self.second.weight = self.first.weight

    def forward(self, registers: Tensor) -> Tensor:
        return self.second(self.first(registers.mean(1))) * self.scale


class Tagged(Tensor):
    """A tensor subclass, as quantised and sharded weights are."""

    def new_empty(self, *sizes, **options) -> "Tagged":
        return super().new_empty(*sizes, **options).as_subclass(Tagged)  # a deep copy needs it


class HoldsASubclass(Scales):
    def __init__(self, hidden_dim: int):
        super().__init__(hidden_dim)
        self.tag = nn.Parameter(torch.ones(hidden_dim).as_subclass(Tagged))


SHARED = nn.Parameter(torch.ones(24))


class SharesAGlobal(Scales):
    def __init__(self, hidden_dim: int):
        super().__init__(hidden_dim)
        self.scale = SHARED


class IsItsOwnCopy(Scales):
    def __deepcopy__(self, memo: dict) -> "IsItsOwnCopy":
        return self


class CallsThroughAClosure(Scales):
    def __init__(self, hidden_dim: int):
        super().__init__(hidden_dim)
        scale = self.scale
        self.scaled = lambda pooled: pooled * scale

    def forward(self, registers: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return registers.mean(1) * self.scale
        return self.scaled(registers.mean(1))


# ---- modes


class TakesKeywords(Scales):
    def forward(self, registers: Tensor, **options) -> Tensor:
        return registers.mean(1, **options) * self.scale


class HoldsModulesInADict(Scales):
    def __init__(self, hidden_dim: int):
        super().__init__(hidden_dim)
        self.first = nn.Linear(hidden_dim, hidden_dim)
        self.steps = {"first": self.first}

    def forward(self, registers: Tensor) -> Tensor:
        return self.steps["first"](registers.mean(1)) * self.scale


class LooksAtNumbers(Scales):
    def forward(self, registers: Tensor) -> Tensor:
        if registers.sum() > 0:
            return registers.mean(1) * self.scale
        return registers.sum(1) * self.scale


class LoopsOverTheBatch(Scales):
    def forward(self, registers: Tensor) -> Tensor:
        rows = [registers[:0].mean(1)]
        for index in range(registers.shape[0]):
            rows.append(registers[index : index + 1].mean(1))
        return torch.cat(rows) * self.scale


class CountsItsCalls(Scales):
    def __init__(self, hidden_dim: int):
        super().__init__(hidden_dim)
        self.calls = 0

    def forward(self, registers: Tensor) -> Tensor:
        self.calls += 1
        return registers.mean(1) * self.scale


class UsesNumpy(Scales):
    def forward(self, registers: Tensor) -> Tensor:
        return torch.from_numpy(np.mean(registers.detach().numpy(), axis=1)) * self.scale


class IsWrongScripted(Scales):
    def forward(self, registers: Tensor) -> Tensor:
        pooled = registers.mean(1) * self.scale
        return pooled * 2 if torch.jit.is_scripting() else pooled


class IsWrongCompiled(Scales):
    def forward(self, registers: Tensor) -> Tensor:
        pooled = registers.mean(1) * self.scale
        if torch.jit.is_scripting():
            return pooled
        return pooled * 2 if torch.compiler.is_dynamo_compiling() else pooled


class IsWrongExported(Scales):
    def forward(self, registers: Tensor) -> Tensor:
        pooled = registers.mean(1) * self.scale
        if torch.jit.is_scripting():
            return pooled
        return pooled * 2 if torch.compiler.is_exporting() else pooled


# ---- programs


class KeepsItsRegisters(Scales):
    def __init__(self, hidden_dim: int):
        super().__init__(hidden_dim)
        self.held = {}

    def forward(self, registers: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and not torch.compiler.is_compiling():
            self.held["registers"] = registers
            time.sleep(0.002)
            registers = self.held["registers"]
        return registers.mean(1) * self.scale


PROGRAM = "program[torchscript]"
WRONG = {
    DrawsANumber: {"state-dict", PROGRAM},
    DrawsAPlainTensor: {"state-dict", "safetensors", PROGRAM},
    ForgetsItsStatistic: {"state-dict", "safetensors", PROGRAM},
    HidesATable: {"safetensors", PROGRAM},
    TiesItsWeights: {"safetensors", PROGRAM},
    HoldsASubclass: {"safetensors", PROGRAM},
    SharesAGlobal: {"deepcopy", "not-finite[torchscript]"},
    IsItsOwnCopy: {"deepcopy", PROGRAM},
    CallsThroughAClosure: {"deepcopy", PROGRAM},
    TakesKeywords: {"script", PROGRAM},
    HoldsModulesInADict: {"script", PROGRAM},
    LooksAtNumbers: {"compile", "export"},
    LoopsOverTheBatch: {"compile", "export"},
    CountsItsCalls: {"compile"},
    UsesNumpy: {"script", "export", PROGRAM},
    IsWrongScripted: {"script", PROGRAM},
    IsWrongCompiled: {"compile"},
    IsWrongExported: {"export"},
    KeepsItsRegisters: {"threads"},
}


# ---- export backends


class Forgetful(TorchScriptBackend):
    """Right each time that export opens its program, and wrong after a load."""

    opened = 0

    def export(self, source):
        Forgetful.opened = 0
        (program,) = super().export(source)
        return [replace(program, file="program.forgetful.pt")]

    def open(self, owner, program, weights):
        Forgetful.opened += 1
        run, wrong = super().open(owner, program, weights), Forgetful.opened > 2
        # right at B = 1, which every load tries
        return lambda given: [out * 2 if wrong and len(given) > 1 else out for out in run(given)]


class Racing(TorchScriptBackend):
    """Its programs store their registers on themselves between two steps."""

    def export(self, source):
        (program,) = super().export(source)
        return [replace(program, file="program.racing.pt")]

    def open(self, owner, program, weights):
        run, held = super().open(owner, program, weights), {}

        def racing(given):
            held["registers"] = given
            time.sleep(0.002)
            return run(held["registers"])

        return racing


def registry_of_the_wrong():
    """A registry of the installed plugins, these readouts and these backends."""
    readouts = [regplug.ReadoutEntry(one.__name__, one) for one in (Scales, RefusesNoSamples, IsHalf, *WRONG)]
    backends = [regplug.ExportBackendEntry("forgetful", Forgetful), regplug.ExportBackendEntry("racing", Racing)]
    return installed_with(*readouts, *backends, distribution="wrong")
