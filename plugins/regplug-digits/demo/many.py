"""The registers of all digits in a Parquet file, and their conditioning vectors by ``regplug run``, on both engines.

Needs the bundle of the readout that ``demo.py`` exports. Both engines must write the same bytes, and the vectors must
be those of the module.
"""

from __future__ import annotations

import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from demo import BUILD, TOOLS, console, largest_error, run
from torch import Tensor

import regplug
from regplug_digits import load_pretrained
from regplug_digits.data import load

PART = 600  # digits in a file


def write_registers() -> Tensor:
    """Write all digits' registers, with a number and the label of each; gives the registers."""
    model = load_pretrained()
    train, test = load()
    with torch.inference_mode():
        tokens = model.last_tokens(torch.cat([train.images, test.images]))
        registers = tokens[:, list(model.layout.positions(tokens.shape[1]))].contiguous()
    labels = torch.cat([train.labels, test.labels])
    folder = BUILD / "registers"
    folder.mkdir(parents=True, exist_ok=True)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(registers.numpy().reshape(-1)), registers[0].numel())
    table = pa.table({"digit": range(len(labels)), "label": labels.numpy(), "registers": lists})
    for number, start in enumerate(range(0, len(table), PART)):
        pq.write_table(table.slice(start, PART), folder / f"{number}.parquet")
    return registers


def main() -> None:
    """Run both engines, and compare their files with each other and with the module."""
    with console.status("reading all digits' registers"):
        registers = write_registers()
    bundle = BUILD / "readout"
    for engine in ("local", "ray"):
        shutil.rmtree(BUILD / f"vectors-{engine}", ignore_errors=True)
        chosen = (bundle, BUILD / "registers", "-o", BUILD / f"vectors-{engine}", "--carry", "digit,label")
        run(TOOLS / "regplug", "run", *chosen, "--engine", engine)
    run(TOOLS / "regplug", "run", "--status", BUILD / "vectors-local")
    local, ray = (sorted((BUILD / f"vectors-{engine}").glob("*.parquet")) for engine in ("local", "ray"))
    same = [one.read_bytes() == other.read_bytes() for one, other in zip(local, ray, strict=True)]
    rows = pq.read_table(BUILD / "vectors-local", columns=["digit", "conditioning"])
    got = torch.tensor(rows.column("conditioning").to_pylist())
    with torch.inference_mode():
        error = largest_error([got], [regplug.load(bundle).double()(registers.double())])
    print(f"\n{len(rows):,} digits in {len(local)} files: {sum(same)} of them the same bytes by both engines;")
    print(f"largest error against a float64 forward {error:.1e}")
    if not all(same) or error > 1e-4 or rows.column("digit").to_pylist() != list(range(len(registers))):
        sys.exit("demo: expected every digit once, in order, and the same bytes by both engines, got others")


if __name__ == "__main__":
    main()
