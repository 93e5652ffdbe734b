"""``make matrix``, second part: each strategy with a mask in each runtime, padded samples compared with samples alone.

Prints a row for each strategy and a column for each runtime: the largest error of any batch, length and pattern of
padding, which holds NaN, relative to the largest number of the sample alone in eager mode without a mask. Exit status 1
if one is above the tolerance.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import torch
from support.consumer import built_with
from support.readouts import moved
from support.strategies import EVERY, D, spec_of
from torch import Tensor, nn

import regplug
from regplug.commands.printing import print_columns
from regplug.format.weights import load_tensors, save_tensors
from regplug.nn.readouts.join_parts import JoinPart

TOLERANCE = 1e-5
SIZES = ((1, 1), (1, 9), (2, 4), (5, 33))  # B, N
PATTERNS = ("none", "right", "left", "scattered")
OPTIONS = {name: options for name, (options, _) in EVERY.items() if spec_of(name).takes_mask}
OPTIONS["regplug:join"] = {"parts": (JoinPart("one", "attention"), JoinPart("other", "regplug-zoo:max"))}
REGPLUG_RUN = Path(regplug.__file__).parent / "share" / "regplug-run"
Run = Callable[[Tensor, Tensor], Tensor]


def mask_of(batch: int, count: int, pattern: str) -> Tensor:
    """``[B, N]`` with at least one token that counts in each sample; each sample has its own length."""
    generator = torch.Generator().manual_seed(batch * count)
    lengths = torch.randint(1, count + 1, (batch, 1), generator=generator)
    places = torch.arange(count).expand(batch, -1)
    if pattern == "none":
        return torch.ones(batch, count, dtype=torch.bool)
    if pattern == "left":
        return places >= count - lengths
    if pattern == "scattered":
        places = torch.rand(batch, count, generator=generator).argsort(1)
    return places < lengths


def cases() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each batch, length and pattern: its name, tokens with NaN for padding, and the mask."""
    for batch, count in SIZES:
        for pattern in PATTERNS:
            mask = mask_of(batch, count, pattern)
            tokens = torch.randn(batch, count, D, generator=torch.Generator().manual_seed(count))
            yield f"B={batch} N={count} {pattern}", tokens.masked_fill(~mask.unsqueeze(2), torch.nan), mask


def errors(run: Run, readout: nn.Module) -> dict[str, float]:
    """For each case the largest error; NaN if the answer has one."""
    found = {}
    with torch.no_grad():
        for name, tokens, mask in cases():
            alone = torch.cat([readout(tokens[row : row + 1, mask[row]]) for row in range(len(tokens))])
            found[name] = ((run(tokens, mask) - alone).abs().max() / alone.abs().max()).item()
    return found


def in_a_process(program: Path, folder: Path) -> Run:
    """The program ``regplug-run``, which is C++, on one file of inputs for each call."""
    given, made = folder / "in.safetensors", folder / "out.safetensors"

    def run(tokens: Tensor, mask: Tensor) -> Tensor:
        given.write_bytes(save_tensors({"tokens": tokens, "mask": mask}))
        subprocess.run([program, folder / "b", given, made], check=True)
        return load_tensors("out", made.read_bytes())["conditioning"].clone()

    return run


def runtimes(spec: regplug.ReadoutSpec, readout: nn.Module, folder: Path) -> Iterator[tuple[str, Run]]:
    """Each runtime that has the strategy, by name."""
    yield "eager", readout
    torch.compiler.reset()
    yield "compile", torch.compile(readout, fullgraph=True, dynamic=True)
    regplug.export(spec, readout, folder / "b", backends=["torchscript", "aotinductor", "onnx"], mask=True)
    for backend in ("torchscript", "aotinductor", "onnx"):
        program = regplug.load(folder / "b", program=backend)
        yield backend, lambda tokens, mask, program=program: program(tokens, mask=mask)
    yield "C++, libtorch", in_a_process(built_with(source=REGPLUG_RUN) / "regplug-run", folder)
    needs = {one.properties.get("needs") for one in regplug.verify(folder / "b").manifest.programs}
    if "nothing" in needs:
        import regplug_runtime  # loads libregplug, which only the installed package has

        with regplug_runtime.open(folder / "b") as bundle:
            yield (
                "C++ alone",
                lambda tokens, mask: torch.from_numpy(bundle.run({"tokens": tokens.numpy(), "mask": mask.numpy()})),
            )


COLUMNS = ("eager", "compile", "torchscript", "aotinductor", "onnx", "C++, libtorch", "C++ alone")


def row(strategy: str) -> tuple[list[str], list[str]]:
    """A strategy's row, and a line for each error above the tolerance."""
    spec = regplug.resolve(strategy, num_registers=None, hidden_dim=D, **OPTIONS[strategy])
    torch.manual_seed(0)
    readout = moved(spec.build(), 0.2).eval()
    cells = dict.fromkeys(COLUMNS, "-")
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for name, run in runtimes(spec, readout, Path(folder)):
            found = errors(run, readout)
            cells[name] = f"{torch.tensor([*found.values()]).max().item():.1e}"  # NaN if one is
            wrong += [f"{strategy}: {name}: {case}: {one:.1e}" for case, one in found.items() if not one <= TOLERANCE]
    return [strategy, *cells.values()], wrong


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("strategy", nargs="*", default=[*OPTIONS], help="distribution:name; all with a mask by default")
    strategies = parser.parse_args().strategy
    torch.set_num_threads(1)
    start = time.perf_counter()
    rows, wrong = [], []
    for number, strategy in enumerate(strategies, 1):
        cells, lines = row(strategy)
        rows.append(cells)
        wrong += lines
        click.echo(f"{number}/{len(strategies)} {strategy}", err=True)
    print_columns(("padded compared with alone", *COLUMNS), rows)
    for line in wrong:
        click.echo(f"above {TOLERANCE:.0e}: {line}")
    count = len(rows) * len(SIZES) * len(PATTERNS)
    click.echo(f"{len(rows)} strategies, {count} batches in each runtime in {time.perf_counter() - start:.0f} s")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
