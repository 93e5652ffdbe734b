"""One side of a benchmark row: a module in one mode, warmed up on the row's registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from regplug.commands.bench.report import Side
from regplug.torch_private import torchscript_without_warnings

WARM_UP_CALLS = 5  # TorchScript optimizes in its second and third


class Runner:
    """A module in one mode; ``prepare`` gives it the inputs of one row, ``step`` is what is timed."""

    def __init__(self, module: nn.Module, mode: str, frozen: bool) -> None:
        self.parameters = dict(sorted(module.named_parameters()))
        self.step: Callable[[], object]
        self.module = module
        self.mode = mode
        self.frozen = frozen

    @cached_property
    def call(self) -> Callable[..., Tensor]:
        """The module, scripted or compiled if the mode says so."""
        module = deepcopy(self.module).requires_grad_(False) if self.frozen else self.module
        return _in_mode(module, self.mode)

    def prepare(self, registers: Tensor, vectors: Mapping[str, Tensor], backward: bool) -> list[Tensor]:
        """Warm up, and give the tensors to compare: the output, and with backward every gradient."""
        self.registers = registers
        self.forward = partial(self.call, registers, **({"vectors": vectors} if vectors else {}))
        output = self.forward()
        view = output.untyped_storage().data_ptr() == registers.untyped_storage().data_ptr()
        given = registers.nbytes + sum(one.nbytes for one in vectors.values())
        self.bytes_moved = 0 if view else given + output.nbytes
        self.cotangent = randn(output.shape, output) if backward else None
        self.step = self._forward_and_backward if backward else self.forward
        for _ in range(WARM_UP_CALLS):
            self.step()
        if not backward:
            return [output]
        gradients = [registers.grad, *(parameter.grad for parameter in self.parameters.values())]
        return [output.detach(), *(registers.new_zeros(()) if one is None else one.clone() for one in gradients)]

    def with_shares(self, side: Side, copied_per_second: float, gemm: float, hidden_dim: int, batch: int) -> Side:
        """The side, with its shares of the copy bandwidth and of the rate of matrix products."""
        if side.microseconds is None:
            return side
        seconds = side.microseconds.median / 1e6
        try:
            flops = int(self.module.flop_count(hidden_dim)) * batch  # type: ignore[operator]
        except Exception:  # another class may have none, or a different one
            flops = 0
        return replace(
            side,
            bandwidth_share=self.bytes_moved / copied_per_second / seconds or None,
            gemm_share=flops / gemm / seconds or None,
        )

    def _forward_and_backward(self) -> None:
        self.registers.grad = None
        for parameter in self.parameters.values():
            parameter.grad = None
        self.forward().backward(self.cotangent)


def _in_mode(module: nn.Module, mode: str) -> Callable[..., Tensor]:
    if mode == "torchscript":
        with torchscript_without_warnings():
            return torch.jit.script(module)
    return torch.compile(module, fullgraph=True) if mode == "compile" else module


def randn(shape: Sequence[int], like: Tensor) -> Tensor:
    """Normal random numbers, the same at every call."""
    generator = torch.Generator(like.device).manual_seed(0)
    return torch.randn(shape, generator=generator, device=like.device).to(like.dtype)
