"""Times functions in turns, so that a disturbance of the machine affects them all; and the machine's own rates."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import repeat
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import torch

from regplug.commands.bench.report import Spread
from regplug.torch_private import cpu_capability

BLOCK_SECONDS = 0.001  # below the time slice of a busy machine
CELL_SECONDS = 0.35  # all steps together
MIN_ROUNDS, MAX_ROUNDS = 5, 201
GEMM_SIZE = {"cpu": 512, "cuda": 4096}


# not torch.utils.benchmark: its Timer makes two more calls before each block, which triples the time of slow steps, and
# importing it imports setuptools
def interleaved(steps: Sequence[Callable[[], object]], device: torch.device, rounds: int | None) -> list[list[float]]:
    """Seconds per call of each step, one number per round; the blocks of a round run one after another."""
    counts, round_seconds = [], 0.0
    for step in steps:
        count, seconds = 1, 0.0
        while seconds < BLOCK_SECONDS / 2:
            count = max(count + 1, round(count * BLOCK_SECONDS / seconds)) if seconds else 1
            seconds = min(_block(step, count, device) for _ in range(3))  # the fastest of three is hardly disturbed
        counts.append(count)
        round_seconds += seconds
    if rounds is None:
        rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(CELL_SECONDS / round_seconds)))
    order = list(range(len(steps)))
    calm: list[list[float]] = []
    disturbed: list[list[float]] = []
    while len(calm) < rounds and len(disturbed) < 2 * rounds:
        preempted = getrusage(RUSAGE_SELF).ru_nivcsw
        seconds_per_call = [0.0] * len(steps)
        for index in order:
            seconds_per_call[index] = _block(steps[index], counts[index], device) / counts[index]
        order.reverse()
        (calm if getrusage(RUSAGE_SELF).ru_nivcsw == preempted else disturbed).append(seconds_per_call)
    kept = calm if len(calm) >= min(rounds, MIN_ROUNDS) else calm + disturbed
    return [list(series) for series in zip(*kept, strict=True)]


def _block(step: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds for ``count`` calls; on a GPU, until they are done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in repeat(None, count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def spread_of(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Spread(median, low, high)


def copy_rate(moved: int, device: str, rounds: int | None) -> float:
    """Bytes per second of the best ``Tensor.copy_`` that moves so many: half are read, half are written."""
    source = torch.ones(-(-moved // 2), dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    [times] = interleaved([partial(target.copy_, source)], source.device, rounds)
    return 2 * source.numel() / min(times)


def gemm_rate(dtype: torch.dtype, device: str, rounds: int | None) -> float:
    """FLOPs per second of the best product of two square matrices, 2 per multiply-add."""
    size = GEMM_SIZE[device]
    matrix = torch.ones(size, size, dtype=dtype, device=device) / size
    [times] = interleaved([partial(torch.mm, matrix, matrix)], matrix.device, rounds)
    return 2 * size**3 / min(times)


def describe_machine(device: str) -> dict[str, str | None]:
    """Names and versions that the times depend on."""
    return {
        "cpu": _cpu_name(),
        "instruction_set": cpu_capability(),
        "cuda": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
