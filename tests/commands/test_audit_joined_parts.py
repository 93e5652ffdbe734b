"""Where a forward joins its conditioning by ``torch.cat``, the audit names the part whose width does not follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regplug
from regplug.commands.audit.inputs import parse_inputs
from regplug.commands.audit.network import audit_network
from regplug.commands.audit.verdict import FiLMInputFinding

D, R, C = 48, 4, 12


class Policy(nn.Module):
    """Two readouts and a state, joined by hand; ``width`` is what its author computed by hand."""

    def __init__(self, num_registers: int, hidden_dim: int, compressed_dim: int, width: int, inner: int = 0) -> None:
        super().__init__()
        sizes = {"num_registers": num_registers, "hidden_dim": hidden_dim}
        self.read = regplug.create("compress-concat", **sizes, compressed_dim=compressed_dim)
        self.average = regplug.create("mean", **sizes)
        self.first = nn.Linear(width, inner) if inner else nn.Identity()
        self.film = regplug.KernelFiLMGenerator(inner or width, 16, 2)
        self.out = nn.Linear(hidden_dim, 16)

    def joined(self, registers: Tensor, state: Tensor) -> Tensor:
        return torch.cat([self.read(registers), self.average(registers), state], dim=-1)

    def forward(self, registers: Tensor, state: Tensor) -> Tensor:
        (gamma, beta), *_ = self.film(self.first(self.joined(registers, state)))
        return self.out(registers.mean(1)) * gamma + beta


class Nested(Policy):
    """A join of a join, behind an activation."""

    def joined(self, registers: Tensor, state: Tensor) -> Tensor:
        inner = torch.hstack([self.read(registers), self.average(registers)])
        return F.silu(torch.concat(tensors=[inner, state], dim=1))


def finding(cls: type[Policy], width: Any, inner: int = 0) -> FiLMInputFinding:
    def build(num_registers: int = R, hidden_dim: int = D, compressed_dim: int = C) -> nn.Module:
        return cls(num_registers, hidden_dim, compressed_dim, width(num_registers, hidden_dim, compressed_dim), inner)

    inputs = parse_inputs(["registers=B,R,D", "state=B,7"], lambda text: None)
    [found] = audit_network("network x", build, {}, {}, inputs=inputs).findings
    return found


@pytest.mark.parametrize("cls", [Policy, Nested])
@pytest.mark.parametrize("inner", [0, 20])
def test_a_sum_that_follows_every_part_is_no_finding(cls, inner):
    assert finding(cls, lambda r, d, c: r * c + d + 7, inner).verdict == "follows"


@pytest.mark.parametrize("cls", [Policy, Nested])
def test_the_part_that_the_sum_forgot_is_named_with_both_widths(cls):
    found = finding(cls, lambda r, d, c: R * c + d + 7)
    assert found.verdict == "wrong"
    assert found.reason.endswith(
        "at R=5, D=48, c=12 it joins 60 by read (48 at the network's own sizes) + 48 by average + 7 by input state"
    )


def test_another_part_is_named_if_it_is_the_forgotten_one():
    found = finding(Policy, lambda r, d, c: r * c + D + 7)
    assert found.reason.endswith(
        "at R=4, D=96, c=12 it joins 48 by read + 96 by average (48 at the network's own sizes) + 7 by input state"
    )


def test_a_layer_between_the_join_and_film_is_given_the_parts_too():
    found = finding(Nested, lambda r, d, c: R * c + d + 7, inner=20)
    assert found.reason == (
        "first, on the way to it, takes 103, is given 115 at R=5, D=48, c=12, which joins 60 by read (48 at the "
        "network's own sizes) + 48 by average + 7 by input state"
    )


def test_a_sum_that_is_wrong_at_the_own_sizes_lists_all_parts():
    found = finding(Policy, lambda r, d, c: r * c + d)
    assert found.reason.endswith("at R=4, D=48, c=12 it joins 48 by read + 48 by average + 7 by input state")


def test_a_vector_that_is_not_joined_has_no_parts():
    class Alone(Policy):
        def joined(self, registers: Tensor, state: Tensor) -> Tensor:
            vector: Tensor = self.read(registers)
            return torch.cat([vector, vector])[: len(vector)]  # along the batch

    assert "joins" not in finding(Alone, lambda r, d, c: R * c).reason
