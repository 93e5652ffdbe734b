"""How fast ``regplug run`` is, compared with reading and writing alone, and with a loop that a user would write.

    python tests/bench_run.py                  # 2 GB of registers, R=4, D=384, float32, in Parquet
    python tests/bench_run.py --gigabytes 0.5 --readout compress-concat --ray

Each way runs as a process of its own, in turns, on all the data and on a quarter of it. The speed is that of the
other three quarters, so that starting Python and torch does not count; of each time, the shortest of all rounds counts.
The whole time is shown too. ``floor`` reads the column with pyarrow and writes the first ``cond_dim`` numbers of each
row, without a model; ``loop`` is pyarrow and the eager module, with all cores that torch takes. Both are one process.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import regplug
from regplug.commands.printing import print_columns, say

R, D = 4, 384
ROW_BYTES = 4 * R * D
GROUP = 10_000  # rows of a row group
FILE = 40_000  # rows of a file
OPTIONS = {"compress-concat": {"compressed_dim": 96}}

FLOOR = """
import sys
import pyarrow as pa, pyarrow.parquet as pq
out, width, *files = sys.argv[1:]
width = int(width)
for path in files:
    file = pq.ParquetFile(path)
    kind = pa.list_(pa.float32(), width)
    with pq.ParquetWriter(f"{out}/{path.rpartition('/')[2]}", pa.schema({"conditioning": kind}),
                          compression="none", use_dictionary=False, write_statistics=False) as writer:
        for batch in file.iter_batches(1024, columns=["registers"]):
            column = batch.column(0)
            if pa.types.is_fixed_size_binary(column.type):
                size = column.type.byte_width // 4
                buffers = [None, column.buffers()[1]]
                flat = pa.Array.from_buffers(pa.float32(), len(column) * size, buffers, offset=column.offset * size)
            else:
                flat = column.flatten()
            numbers = flat[: len(column) * width]
            writer.write_table(pa.table({"conditioning": pa.FixedSizeListArray.from_arrays(numbers, width)}))
"""
LOOP = """
import sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq, torch, regplug
out, bundle, *files = sys.argv[1:]
module = regplug.load(bundle)
for path in files:
    writer = None
    for batch in pq.ParquetFile(path).iter_batches(1024, columns=["registers"]):
        column = batch.column(0)
        if pa.types.is_fixed_size_binary(column.type):
            registers = np.frombuffer(column.buffers()[1], np.float32).reshape(-1, 4, 384)
            registers = registers[column.offset :][: len(column)]
        else:
            registers = column.flatten().to_numpy().reshape(-1, 4, 384)
        with torch.inference_mode():
            found = module(torch.from_numpy(registers.copy())).numpy()
        lists = pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), found.shape[1])
        table = pa.table({"conditioning": lists})
        if writer is None:
            writer = pq.ParquetWriter(f"{out}/{path.rpartition('/')[2]}", table.schema)
        writer.write_table(table)
    writer.close()
"""


def write_data(folder: Path, rows: int, column: str) -> list[str]:
    """Files of random registers; gives their paths."""
    generator = np.random.default_rng(0)
    paths = []
    for start in range(0, rows, FILE):
        count = min(FILE, rows - start)
        numbers = generator.standard_normal((count, R * D), dtype=np.float32)
        if column == "bytes":
            values = pa.Array.from_buffers(pa.binary(ROW_BYTES), count, [None, pa.py_buffer(numbers)])
        else:
            values = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), R * D)
        path = folder / f"{start // FILE:03}.parquet"
        pq.write_table(
            pa.table({"registers": values}), path, compression="none", use_dictionary=False, row_group_size=GROUP
        )
        paths.append(str(path))
    return paths


def seconds_of(command: Sequence[str]) -> float:
    """How long a process takes."""
    begun = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"bench: {done.stderr.decode()[-2000:]}")
    return time.perf_counter() - begun


def command_of(way: str, bundle: Path, width: int, paths: Sequence[str], out: Path) -> list[str]:
    """One way to do it."""
    if way == "floor":
        return [sys.executable, "-c", FLOOR, str(out), str(width), *paths]
    if way == "loop":
        return [sys.executable, "-c", LOOP, str(out), str(bundle), *paths]
    name, count = way.split()
    engine = ["--engine", "ray"] if name == "ray" else []
    return [sys.executable, "-m", "regplug", "run", str(bundle), *paths, "-o", str(out), "--workers", count, *engine]


@click.command(help=__doc__.partition("\n\n")[0])
@click.option("--gigabytes", default=2.0, show_default=True)
@click.option("--readout", default="pool", show_default=True)
@click.option("--column", type=click.Choice(("lists", "bytes")), default="bytes", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--ray", is_flag=True, help="Ray too.")
def main(gigabytes: float, readout: str, column: str, rounds: int, ray: bool) -> None:
    """Measure, and print one table."""
    rows = int(gigabytes * 1e9) // ROW_BYTES
    ways = ["floor", "loop", "run 1", "run 2", *(["ray 1", "ray 2"] if ray else [])]
    with tempfile.TemporaryDirectory(prefix="regplug-bench-") as name:
        folder = Path(name)
        torch.manual_seed(0)
        spec = regplug.resolve(readout, num_registers=R, hidden_dim=D, **OPTIONS.get(readout, {}))
        bundle = regplug.export(spec, spec.build(), folder / "bundle").directory
        (folder / "data").mkdir()
        paths = write_data(folder / "data", rows, column)
        quarter = paths[: max(len(paths) // 4, 1)]
        more = rows - FILE * len(quarter)
        whole: dict[str, list[float]] = {way: [] for way in ways}
        part: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                for given, found in ((quarter, part), (paths, whole)):
                    shutil.rmtree(folder / "out", ignore_errors=True)
                    (folder / "out").mkdir()
                    found[way].append(seconds_of(command_of(way, bundle, spec.cond_dim, given, folder / "out")))
    speeds = {way: more / (min(whole[way]) - min(part[way])) for way in ways}
    say(f"{rows:,} rows, {gigabytes} GB in {len(paths)} files, column of {column}, {readout}; best of {rounds} rounds")
    table = []
    for way in ways:
        line = (way, f"{speeds[way]:,.0f}", f"{speeds[way] * ROW_BYTES / 1e6:,.0f}")
        ratios = (f"{speeds[way] / speeds['floor']:.2f}", f"{speeds[way] / speeds['loop']:.2f}")
        table.append((*line, *ratios, f"{min(whole[way]):.1f}"))
    print_columns(("", "rows/s", "MB/s", "of the floor", "of the loop", "whole time s"), table)


if __name__ == "__main__":
    main()
