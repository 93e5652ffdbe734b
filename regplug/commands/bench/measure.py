"""Times a readout against another module, or against its own eager mode, interleaved in one process.

What is timed, and how:

* Blocks of a millisecond alternate, ours and the other, in alternating order; a ratio is that of two blocks that stand
  side by side, so what slows the machine down for longer than a block slows both. Pairs during which the system took
  the CPU away are dropped, unless most are so.
* One input buffer, the same for both, and warm: a readout reads what the backbone has just written.
* A register slice is ``tokens[:, 1:1 + R]`` of a tensor ``[B, N, D]``, a strided view; the view is made once.
* ``forward`` is under ``no_grad``, as in validation; ``inference`` is in inference mode with frozen parameters, as a
  readout is deployed: some operations take other ways where no weight wants a gradient.
* ``forward+backward``: the registers are a leaf of their own, so that a slice's gradient is not scattered into all
  tokens; the loss is a fixed random cotangent, and every gradient is None before each step.
* The share of the copy bandwidth counts what must move at least, registers read and output written, against a
  ``Tensor.copy_`` that moves as many bytes in as large a working set, so that both find the same caches; the rate
  is that of its best block. What reads more than it writes can go a little beyond a copy's rate. No share is given
  with backward, nor where the output is a view of the registers, which moves nothing.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import cached_property, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from regplug.backends.inductor_folder import private_inductor_folder
from regplug.commands.bench.report import PASSES, PLACES, CopyRate, Plan, Report, Row, Side
from regplug.commands.bench.timing import copy_rate, describe_machine, gemm_rate, interleaved, spread_of
from regplug.errors import SpecError, class_name, one_line
from regplug.registry.cond_dim import construct, probe_in_place
from regplug.registry.dtypes import torch_dtype
from regplug.registry.options import bind, parameters_of
from regplug.registry.spec import ReadoutSpec
from regplug.torch_private import mark_dynamic_batch, torchscript_without_warnings

CONTEXTS: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    "forward": torch.no_grad,
    "inference": torch.inference_mode,
    "forward+backward": torch.enable_grad,
}
NEXT_TO_NOTHING = 1e-2  # of the largest number of all tensors
WARM_UP_CALLS = 5  # TorchScript optimises in its second and third


class _Runner:
    """A module as it runs in one mode; ``take`` gives it the registers of one cell, ``step`` is what is timed."""

    def __init__(self, module: nn.Module, mode: str, frozen: bool) -> None:
        self.parameters = dict(sorted(module.named_parameters()))
        self.step: Callable[[], object]
        self.module = module
        self.mode = mode
        self.frozen = frozen

    @cached_property
    def call(self) -> Callable[[Tensor], Tensor]:
        """The module, scripted or compiled as the mode wants it."""
        module = deepcopy(self.module).requires_grad_(False) if self.frozen else self.module
        return _in_mode(module, self.mode)

    def take(self, registers: Tensor, backward: bool) -> list[Tensor]:
        """Warm up, and give what is to be compared: the output, with backward every gradient too."""
        self.registers = registers
        output = self.call(registers)
        view = output.untyped_storage().data_ptr() == registers.untyped_storage().data_ptr()
        self.bytes_moved = 0 if view else registers.nbytes + output.nbytes
        self.cotangent = _randn(output.shape, output) if backward else None
        self.step = self._forward_and_backward if backward else partial(self.call, registers)
        for _ in range(WARM_UP_CALLS):
            self.step()
        if not backward:
            return [output]
        gradients = [registers.grad, *(parameter.grad for parameter in self.parameters.values())]
        return [output.detach(), *(registers.new_zeros(()) if one is None else one.clone() for one in gradients)]

    def reached(self, side: Side, copied_per_second: float, gemm: float, hidden_dim: int, batch: int) -> Side:
        """The side with its shares of the two rates."""
        if side.microseconds is None:
            return side
        seconds = side.microseconds.median / 1e6
        try:
            flops = int(self.module.flop_count(hidden_dim)) * batch  # type: ignore[operator]
        except Exception:  # another's class may have none, or one of another kind
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
        self.call(self.registers).backward(self.cotangent)


def build_other(label: str, build: Callable[..., Any], spec: ReadoutSpec) -> nn.Module:
    """The module to compare with, from those of the spec's sizes and options that its constructor names.

    Raises:
        SpecError: It does not take them, or does not read ``[B, R, D]``.
    """
    named = parameters_of(label, build)
    sizes = {"num_registers": spec.num_registers, "hidden_dim": spec.hidden_dim}
    options = {option: value for option, value in spec.options.items() if option in named}
    module = construct(label, build, bind(label, build, sizes, options))
    probe_in_place(label, module, spec.num_registers, spec.hidden_dim)
    return module


def bench(
    specs: Sequence[ReadoutSpec],
    others: Sequence[nn.Module] | None,
    plan: Plan,
    against: str | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Report:
    """Measure every combination of the plan.

    Args:
        specs: One strategy at one or several R.
        others: What each is compared with, one for each spec; None compares ours with its own eager mode.
        plan: What to measure.
        against: What to call the others.
        progress: Called with a word on each step.

    Raises:
        SpecError: There is no such device, a slice is longer than the sequence, or the memory does not suffice.
    """
    longest = max(spec.num_registers for spec in specs)
    if plan.tokens < longest + 1:
        raise SpecError(f"tokens: expected at least R + 1 = {longest + 1}, got {plan.tokens}.")
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise SpecError("device 'cuda': expected a GPU that torch can use, got none; use --device cpu.")
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    gc.collect()
    torch.set_num_threads(plan.threads)
    gc.disable()
    try:
        progress("rates of copies and matrix products")
        rounds = plan.rounds
        gemm = gemm_rate(torch_dtype(plan.dtype), plan.device, rounds)
        rows: list[Row] = []
        copies: list[CopyRate] = []
        for index, spec in enumerate(specs):
            with _allocation():
                rates = [copy_rate(_bytes_moved(spec, batch, plan), plan.device, rounds) for batch in plan.batches]
            copies += [CopyRate(spec.num_registers, *pair) for pair in zip(plan.batches, rates, strict=True)]
            other = others[index] if others else None
            rows += _rows(spec, other, plan, dict(zip(plan.batches, rates, strict=True)), gemm, progress)
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()
    rows.sort(key=lambda row: plan.modes.index(row.mode))
    return Report(
        strategy=specs[0].strategy,
        options=specs[0].as_dict()["options"],
        against=against,
        sizes={
            "num_registers": [spec.num_registers for spec in specs],
            "cond_dim": [spec.cond_dim for spec in specs],
            "hidden_dim": specs[0].hidden_dim,
        },
        plan=plan,
        machine=describe_machine(plan.device),
        gemm_flops_per_second=gemm,
        copies=copies,
        rows=rows,
    )


def _rows(
    spec: ReadoutSpec,
    other: nn.Module | None,
    plan: Plan,
    copies: Mapping[int, float],
    gemm: float,
    progress: Callable[[str], None],
) -> Iterator[Row]:
    """All rows at one R."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = spec.build().to(plan.device, torch_dtype(plan.dtype)).eval()
        with torch.no_grad():
            for parameter in ours.parameters():  # weights that start equal would hide that the other ignores them
                if parameter.is_floating_point():
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    unlike = None
    if other is not None:
        other = other.to(plan.device, torch_dtype(plan.dtype)).eval()
        unlike = _share_weights(ours, other)
    for mode, work, place in product(plan.modes, PASSES, PLACES):
        if mode == "compile":
            torch.compiler.reset()  # torch keeps every compiled form of a class, and refuses to make more than eight
        frozen = work == "inference"
        first = _Runner(ours, mode, frozen)
        second = None
        if other is not None:
            second = _Runner(other, mode, frozen)
        elif mode != "eager":
            second = _Runner(ours, "eager", frozen)
        for batch in plan.batches:
            progress(f"R={spec.num_registers} {mode} {work} {place} B={batch}")
            row = Row(mode, work, place, spec.num_registers, batch, Side(), difference_note=unlike)
            with CONTEXTS[work]():
                registers = _registers(spec, batch, place, plan, work == "forward+backward")
                if mode == "compile" and batch > 1:  # one sample is a case of its own to torch.compile
                    mark_dynamic_batch(registers)
                with private_inductor_folder() if mode == "compile" else nullcontext():
                    row = _measure(row, first, second, registers, plan.rounds)
            if work != "forward+backward":
                row = replace(row, ours=first.reached(row.ours, copies[batch], gemm, spec.hidden_dim, batch))
                if second is not None and row.other is not None:
                    other_side = second.reached(row.other, copies[batch], gemm, spec.hidden_dim, batch)
                    row = replace(row, other=other_side)
            yield row


def _measure(row: Row, first: _Runner, second: _Runner | None, registers: Tensor, rounds: int | None) -> Row:
    """Warm up, compare, and time one cell."""
    runners = [first] if second is None else [first, second]
    backward = row.work == "forward+backward"
    sides: list[Side] = []
    answers: list[list[Tensor]] = []
    for runner in runners:
        try:
            answers.append(runner.take(registers, backward))
            sides.append(Side())
        except Exception as error:  # a mode may refuse a module in any way; the other rows are still worth having
            sides.append(Side(failed=f"{class_name(error)}: {one_line(error)}"))
    running = [runner for runner, side in zip(runners, sides, strict=True) if side.failed is None]
    times = interleaved([runner.step for runner in running], registers.device, rounds) if running else []
    microseconds = iter([spread_of([1e6 * one for one in series]) for series in times])
    sides = [side if side.failed else replace(side, microseconds=next(microseconds)) for side in sides]
    row = replace(row, ours=sides[0], other=sides[1] if second else None, rounds=len(times[0]) if times else 0)
    if len(times) < 2:
        return replace(row, difference_note=None)
    ratio = spread_of([theirs / mine for mine, theirs in zip(*times, strict=True)])
    if row.difference_note is None:
        difference, note = _difference(*answers)
        row = replace(row, difference=difference, difference_note=note)
    return replace(row, ratio=ratio)


def _in_mode(module: nn.Module, mode: str) -> Callable[[Tensor], Tensor]:
    if mode == "torchscript":
        with torchscript_without_warnings():
            return torch.jit.script(module)
    return torch.compile(module, fullgraph=True) if mode == "compile" else module


def _share_weights(ours: nn.Module, other: nn.Module) -> str | None:
    """Load ours into the other where it has the same weights; else say why the answers cannot be compared."""
    mine, theirs = ours.state_dict(), other.state_dict()
    if {key: one.shape for key, one in mine.items()} != {key: one.shape for key, one in theirs.items()}:
        return "not compared: other weights"
    other.load_state_dict(mine)
    return None


def _difference(ours: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[float | None, str | None]:
    """The largest difference, relative to the tensor's largest number, or why there is none.

    A tensor of numbers that are next to nothing, as a gradient that is 0 but for rounding, is compared with the others.
    """
    largest = 0.0
    floor = NEXT_TO_NOTHING * max((one.double().abs().max().item() for one in other if one.numel()), default=0.0)
    for mine, theirs in zip(ours, other, strict=True):
        if mine.shape != theirs.shape:
            return None, f"not compared: {list(mine.shape)} and {list(theirs.shape)}"
        if theirs.numel():
            mine, theirs = mine.double(), theirs.double()
            scale = max(mine.abs().max().item(), theirs.abs().max().item(), floor)
            relative = (mine - theirs).abs().max().item() / scale if scale else 0.0
            largest = relative if math.isnan(relative) else max(largest, relative)
    return (largest, None) if math.isfinite(largest) else (None, "not finite")


def _bytes_moved(spec: ReadoutSpec, batch: int, plan: Plan) -> int:
    """Registers read and output written, at least."""
    numbers = batch * (spec.num_registers * spec.hidden_dim + spec.cond_dim)
    return numbers * int(torch_dtype(plan.dtype).itemsize)


def _registers(spec: ReadoutSpec, batch: int, place: str, plan: Plan, leaf: bool) -> Tensor:
    shape = [batch, spec.num_registers, spec.hidden_dim]
    like = torch.empty(0, dtype=torch_dtype(plan.dtype), device=plan.device)
    with _allocation():
        values = _randn(shape, like)
        if place == "slice":
            tokens = torch.zeros(batch, plan.tokens, spec.hidden_dim, dtype=like.dtype, device=like.device)
            values = tokens[:, 1 : 1 + spec.num_registers].copy_(values)
    return values.requires_grad_() if leaf else values


def _randn(shape: Sequence[int], like: Tensor) -> Tensor:
    """Normal numbers, the same at every call."""
    generator = torch.Generator(like.device).manual_seed(0)
    return torch.randn(shape, generator=generator, device=like.device).to(like.dtype)


@contextmanager
def _allocation() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError):  # a choice of sizes is wrong, not the machine
        raise SpecError("sizes: expected registers that fit into memory, got larger; use a smaller batch.") from None
