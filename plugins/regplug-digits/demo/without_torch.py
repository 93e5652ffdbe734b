"""without_torch.py READOUT CONDITIONER POSITIONS TOKENS.npy OUT.npz: runs both bundles on NumPy arrays.

Prints the microseconds of one call with one image, the median of many. Only NumPy and regplug-runtime are imported.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

import regplug_runtime


def median_microseconds(call: Callable[[], object]) -> float:
    """The median time of one call, after warming up."""
    taken = []
    for _ in range(3000):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return 1e6 * statistics.median(taken[1000:])


def main(readout: str, conditioner: str, positions: str, given: str, out: str) -> None:
    """Write what they give."""
    tokens = np.load(given)
    registers = tokens[:, json.loads(positions)]
    with regplug_runtime.open(readout) as first, regplug_runtime.open(conditioner) as second:
        pairs = {
            f"{word}_{layer}": array
            for layer, pair in enumerate(second.run_film(tokens))
            for word, array in zip(("gamma", "beta"), pair, strict=True)
        }
        np.savez(out, conditioning=first.run(registers), **pairs)
        times = {
            "readout": median_microseconds(lambda: first.run(registers[:1])),
            "conditioner": median_microseconds(lambda: second.run_film(tokens[:1])),
        }
    if "torch" in sys.modules:
        sys.exit("demo: expected a Python without torch, got one that imported it")
    print(json.dumps(times))


if __name__ == "__main__":
    main(*sys.argv[1:])
