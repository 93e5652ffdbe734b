"""Samples of which it is known what predicts their targets."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import regplug
from regplug.commands.rank.entrants import Plan, Sources, digest_of
from regplug.commands.rank.heads import Head
from regplug.commands.rank.run import rank_sources

R, D, CLASSES = 6, 8, 3
FAST = Plan(Head(), seeds=2, folds=3, epochs=6)


def sources(count: int = 150, targets: str = "classes", groups: Any = None) -> Sources:
    """Register 2 says the class, or the number; the others, the class token and the patches are noise."""
    generator = torch.Generator().manual_seed(0)
    registers = torch.randn(count, R, D, generator=generator)
    classes = torch.randint(0, CLASSES, (count,), generator=generator)
    registers[:, 2] += 2 * torch.randn(CLASSES, D, generator=generator)[classes]
    wanted = classes if targets == "classes" else registers[:, 2] @ torch.randn(D, 1, generator=generator)
    tokens = {"registers": registers}
    tokens |= {name: torch.randn(count, 1, D, generator=generator) for name in ("cls", "patches")}
    outputs = CLASSES if targets == "classes" else 1
    return Sources(tokens, wanted, outputs, groups, digest_of(tokens, wanted, groups))


def specs(*names: str, **options: Any) -> list[regplug.ReadoutSpec]:
    return [regplug.resolve(name, num_registers=R, hidden_dim=D, **options) for name in names]


def spec_of(build: type[nn.Module], name: str = "own") -> regplug.ReadoutSpec:
    """A spec of a class that no other process can import."""
    entry = regplug.ReadoutEntry(name, build=build)
    return regplug.registry.spec.specify(entry, R, D, {})


def ranked(chosen: Sequence[regplug.ReadoutSpec], given: Sources | None = None, **options: Any) -> Any:
    options = {"facts": {}, "runtimes": (), "jobs": 1, **options}
    plan = options.pop("plan", FAST)
    return rank_sources(chosen, given or sources(), plan, **options)
