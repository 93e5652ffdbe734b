"""What a strategy costs: parameters, FLOPs, and microseconds of a call in each runtime, measured in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from regplug.bundle.export import export
from regplug.bundle.load import load
from regplug.commands.bench.report import Spread
from regplug.commands.bench.timing import interleaved, spread_of
from regplug.errors import RegplugError, message_of
from regplug.format.temporary import temporary_folder
from regplug.registry.registry import Registry
from regplug.registry.spec import ReadoutSpec
from regplug.torch_private import torchscript_without_warnings

BATCH = 64
WARM_UP_CALLS = 5
PROGRAMS = "regplug-programs-"  # the prefix of the folder of programs that are timed


@dataclass(frozen=True)
class Cost:
    """The cost of one strategy.

    Args:
        parameters: Numbers that are trained.
        flops: For one sample; None if the readout does not say.
        microseconds: For each runtime, of a call with ``BATCH`` samples; a text where it failed.
    """

    parameters: int
    flops: int | None
    microseconds: Mapping[str, Spread | str]


def costs_of(
    specs: Sequence[ReadoutSpec],
    runtimes: Sequence[str],
    registry: Registry,
    progress: Callable[[str], None] = lambda step: None,
) -> list[Cost]:
    """The costs of strategies, one thread; in each runtime all are measured in turns, so that they compare.

    Args:
        specs: The strategies, at one R and D.
        runtimes: Some of ``choices.RUNTIMES``.
        registry: Where export backends are looked up.
        progress: Called with each step.
    """
    modules = [spec.build().eval().requires_grad_(False) for spec in specs]
    measured: list[dict[str, Spread | str]] = [{} for _ in specs]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), temporary_folder(Path(tempfile.gettempdir()), PROGRAMS) as folder:
            for runtime in runtimes:
                progress(f"times in {runtime}")
                steps: dict[int, Callable[[], object]] = {}
                for place, (spec, module) in enumerate(zip(specs, modules, strict=True)):
                    registers = torch.randn(BATCH, spec.num_registers or 1, spec.hidden_dim)
                    try:
                        step = partial(_in(runtime, spec, module, folder / str(place), registry), registers)
                        for _ in range(WARM_UP_CALLS):
                            step()
                        steps[place] = step
                    except (RegplugError, RuntimeError) as error:  # TorchScript's and Inductor's errors are the latter
                        measured[place][runtime] = message_of(error)
                times = interleaved(list(steps.values()), torch.device("cpu"), None) if steps else []
                for place, series in zip(steps, times, strict=True):
                    measured[place][runtime] = spread_of([1e6 * one for one in series])
    finally:
        torch.set_num_threads(threads)
    return [
        Cost(sum(one.numel() for one in module.parameters()), _flops(module, spec), found)
        for spec, module, found in zip(specs, modules, measured, strict=True)
    ]


def _flops(module: Any, spec: ReadoutSpec) -> int | None:
    count = getattr(module, "flop_count", None)
    return int(count(spec.hidden_dim)) if callable(count) and spec.num_registers is not None else None


def _in(runtime: str, spec: ReadoutSpec, module: Any, folder: Path, registry: Registry) -> Callable[..., Any]:
    if runtime == "torchscript":
        with torchscript_without_warnings():
            return torch.jit.script(module)  # type: ignore[no-any-return]
    if runtime == "aotinductor":
        with torch.inference_mode(False):
            export(spec, spec.build(), folder, backends=[runtime], registry=registry)
        program: Callable[..., Any] = load(folder, program=runtime, registry=registry)
        return program
    return module  # type: ignore[no-any-return]
