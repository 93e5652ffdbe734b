"""Times a readout against another module, or against its own eager mode, interleaved in one process.

What is timed, and how:

* Blocks of one millisecond alternate between ours and the other, in alternating order. A ratio compares two adjacent
  blocks, so a slowdown of the machine that lasts longer than a block affects both. Pairs during which the system
  preempted the process are dropped, unless most pairs are.
* Both read the same warm input buffer, as a readout reads what the backbone has just written.
* A register slice is ``tokens[:, 1:1 + R]`` of a tensor ``[B, N, D]``, a strided view; the view is made once.
* ``forward`` runs under ``no_grad``, as in validation. ``inference`` runs in inference mode with frozen parameters, as
  in deployment: some operations are faster when no weight needs a gradient.
* ``forward+backward``: the registers are a leaf, so that a slice's gradient is not scattered into all tokens; the loss
  is a fixed random cotangent, and every gradient is None before each step.
* The share of the copy bandwidth counts the bytes that must move at least, registers read and output written. It is
  relative to the best block of a ``Tensor.copy_`` that moves as many bytes in an equally large working set, so that
  both use the same caches. A module that reads more than it writes can slightly exceed a copy's rate. There is no share
  with backward, nor for an output that is a view of the registers, which moves nothing.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from regplug.backends.inductor_folder import private_inductor_folder
from regplug.commands.bench.report import PASSES, PLACES, CopyRate, Plan, Report, Row, Side
from regplug.commands.bench.runner import Runner, randn
from regplug.commands.bench.timing import copy_rate, describe_machine, gemm_rate, interleaved, spread_of
from regplug.errors import SpecError, class_name, one_line
from regplug.registry.cond_dim import construct, probe_in_place
from regplug.registry.dtypes import torch_dtype
from regplug.registry.options import bind, parameters_of
from regplug.registry.readout_inputs import vector_widths
from regplug.registry.spec import ReadoutSpec
from regplug.torch_private import mark_dynamic_batch

CONTEXTS: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    "forward": torch.no_grad,
    "inference": torch.inference_mode,
    "forward+backward": torch.enable_grad,
}
NEGLIGIBLE = 1e-2  # of the largest number of all tensors


def build_other(label: str, build: Callable[..., Any], spec: ReadoutSpec) -> nn.Module:
    """The module to compare with, built from the spec's sizes and options that its constructor names.

    Next to a join with vectors it is called as the join is, with ``vectors={name: [B, width]}``.

    Raises:
        SpecError: It refuses them, or does not read ``[B, R, D]``.
    """
    named = parameters_of(label, build)
    sizes = {"num_registers": spec.num_registers, "hidden_dim": spec.hidden_dim}
    options = {option: value for option, value in spec.options.items() if option in named}
    module = construct(label, build, bind(label, build, sizes, options))
    probe_in_place(label, module, spec.num_registers, spec.hidden_dim, vector_widths(spec.build()))
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
        others: The module to compare with, one for each spec; None compares ours with its own eager mode.
        plan: What to measure.
        against: The name of the others.
        progress: Called with a description of each step.

    Raises:
        SpecError: There is no such device, a slice is longer than the sequence, or memory runs out.
    """
    longest = max(map(_count, specs))
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
            copies += [CopyRate(_count(spec), *pair) for pair in zip(plan.batches, rates, strict=True)]
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
            for parameter in ours.parameters():  # equal initial weights would hide an other that ignores them
                if parameter.is_floating_point():
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    unlike = None
    if other is not None:
        other = other.to(plan.device, torch_dtype(plan.dtype)).eval()
        unlike = _share_weights(ours, other)
    for mode, work, place in product(plan.modes, PASSES, PLACES):
        if mode == "compile":
            torch.compiler.reset()  # torch keeps each compiled form of a class, at most eight
        frozen = work == "inference"
        first = Runner(ours, mode, frozen)
        second = None
        if other is not None:
            second = Runner(other, mode, frozen)
        elif mode != "eager":
            second = Runner(ours, "eager", frozen)
        for batch in plan.batches:
            progress(f"R={spec.num_registers} {mode} {work} {place} B={batch}")
            row = Row(mode, work, place, _count(spec), batch, Side(), difference_note=unlike)
            with CONTEXTS[work]():
                registers = _registers(spec, batch, place, plan, work == "forward+backward")
                vectors = {
                    name: randn([batch, width], registers.detach()) for name, width in vector_widths(ours).items()
                }
                if mode == "compile" and batch > 1:  # torch.compile specializes on one sample
                    for given in (registers, *vectors.values()):
                        mark_dynamic_batch(given)
                with private_inductor_folder() if mode == "compile" else nullcontext():
                    row = _measure(row, first, second, registers, vectors, plan.rounds)
            if work != "forward+backward":
                row = replace(row, ours=first.with_shares(row.ours, copies[batch], gemm, spec.hidden_dim, batch))
                if second is not None and row.other is not None:
                    other_side = second.with_shares(row.other, copies[batch], gemm, spec.hidden_dim, batch)
                    row = replace(row, other=other_side)
            yield row


def _measure(
    row: Row,
    first: Runner,
    second: Runner | None,
    registers: Tensor,
    vectors: Mapping[str, Tensor],
    rounds: int | None,
) -> Row:
    """Warm up, compare, and time one row."""
    runners = [first] if second is None else [first, second]
    backward = row.work == "forward+backward"
    sides: list[Side] = []
    outputs: list[list[Tensor]] = []
    for runner in runners:
        try:
            outputs.append(runner.prepare(registers, vectors, backward))
            sides.append(Side())
        except Exception as error:  # a mode may raise anything; the other rows are still useful
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
        difference, note = _difference(*outputs)
        row = replace(row, difference=difference, difference_note=note)
    return replace(row, ratio=ratio)


def _share_weights(ours: nn.Module, other: nn.Module) -> str | None:
    """Load our weights into the other; if it has different weights, gives why outputs cannot be compared."""
    mine, theirs = ours.state_dict(), other.state_dict()
    if {key: one.shape for key, one in mine.items()} != {key: one.shape for key, one in theirs.items()}:
        return "not compared: other weights"
    other.load_state_dict(mine)
    return None


def _difference(ours: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[float | None, str | None]:
    """The largest difference, relative to the tensor's largest number, or why there is none.

    A tensor of negligible numbers, such as a gradient that is 0 up to rounding, is relative to the other tensors.
    """
    largest = 0.0
    floor = NEGLIGIBLE * max((one.double().abs().max().item() for one in other if one.numel()), default=0.0)
    for mine, theirs in zip(ours, other, strict=True):
        if mine.shape != theirs.shape:
            return None, f"not compared: {list(mine.shape)} and {list(theirs.shape)}"
        if theirs.numel():
            mine, theirs = mine.double(), theirs.double()
            scale = max(mine.abs().max().item(), theirs.abs().max().item(), floor)
            relative = (mine - theirs).abs().max().item() / scale if scale else 0.0
            largest = relative if math.isnan(relative) else max(largest, relative)
    return (largest, None) if math.isfinite(largest) else (None, "not finite")


def _count(spec: ReadoutSpec) -> int:
    if spec.num_registers is None:
        raise SpecError(f"strategy {spec.entry.name!r}: num_registers: expected a fixed number to measure, got None.")
    return spec.num_registers


def _bytes_moved(spec: ReadoutSpec, batch: int, plan: Plan) -> int:
    """Registers and vectors read, and output written, at least."""
    vectors = sum(vector_widths(spec.build()).values())
    numbers = batch * (_count(spec) * spec.hidden_dim + vectors + spec.cond_dim)
    return numbers * int(torch_dtype(plan.dtype).itemsize)


def _registers(spec: ReadoutSpec, batch: int, place: str, plan: Plan, leaf: bool) -> Tensor:
    shape = [batch, _count(spec), spec.hidden_dim]
    like = torch.empty(0, dtype=torch_dtype(plan.dtype), device=plan.device)
    with _allocation():
        values = randn(shape, like)
        if place == "slice":
            tokens = torch.zeros(batch, plan.tokens, spec.hidden_dim, dtype=like.dtype, device=like.device)
            values = tokens[:, 1 : 1 + _count(spec)].copy_(values)
    return values.requires_grad_() if leaf else values


@contextmanager
def _allocation() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError):  # the sizes are wrong, not the machine
        raise SpecError("sizes: expected registers that fit into memory, got larger; use a smaller batch.") from None
