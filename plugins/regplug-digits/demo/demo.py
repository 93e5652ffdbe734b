"""The main job, start to end: from the installed plugin to a C++ program that reads real registers.

Lists what is installed, resolves the FiLM width, exports the trained readout and its conditioner, verifies both, builds
the C++ program, and compares what each way of running them gives on the held-out digits.
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import regplug
from regplug_digits import load_pretrained
from regplug_digits.data import load

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent.parent / "build" / "demo"
TOOLS = Path(sys.executable).parent
PROGRAMS = {"torchscript": "TorchScript", "aotinductor": "AOTInductor", "onnx": "ONNX Runtime"}
CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
console = Console(stderr=True)


@dataclass(frozen=True)
class Outcome:
    """What one way of running readout and conditioner gave on the held-out digits; no times if it was emulated."""

    name: str
    conditioning: Tensor
    pairs: Sequence[Tensor]
    microseconds: Mapping[str, float]


def run(*command: object, quiet: bool = False) -> str:
    """Run a command as a user would, and show it."""
    words = [str(word) for word in command]
    print(f"\n$ {' '.join([Path(words[0]).name, *words[1:]])}", flush=True)
    with console.status(Path(words[0]).name):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}demo: this command failed")
    if not quiet:
        print(done.stdout, end="", flush=True)
    return done.stdout


def flat(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """``[gamma_0, beta_0, gamma_1, ...]``."""
    return [tensor for pair in pairs for tensor in pair]


def median_microseconds(call: Callable[[], object]) -> float:
    """The median time of one call, after warming up."""
    taken = []
    for _ in range(3000):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return 1e6 * statistics.median(taken[1000:])


def outcome(name: str, readout: Callable, conditioner: Callable, registers: Tensor, tokens: Tensor) -> Outcome:
    """Run both on all digits, and time both with one."""
    with torch.inference_mode():
        conditioning, pairs = readout(registers), flat(conditioner(tokens))
        one, first = registers[:1], tokens[:1]
        times = {
            "readout": median_microseconds(lambda: readout(one)),
            "conditioner": median_microseconds(lambda: conditioner(first)),
        }
    return Outcome(name, conditioning, pairs, times)


def largest_error(got: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest absolute difference to the float64 truth; NaN and wrong shapes are infinitely far."""
    if [tensor.shape for tensor in got] != [tensor.shape for tensor in truth]:
        return float("inf")
    errors = [(a.double() - b).abs().max().item() for a, b in zip(got, truth, strict=True)]
    return max(errors) if all(error == error for error in errors) else float("inf")


def compiled(module: nn.Module) -> Callable:
    """``torch.compile`` of a loaded module."""
    return torch.compile(module, fullgraph=True)


def build(source: Path, folder: Path, *settings: str) -> None:
    """Build a CMake project with the installed package."""
    prefix = f"{cmake_dir()};{Path(torch.__file__).parent.parent}"
    ninja = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={TOOLS / 'ninja'}"]
    release = ["-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_PREFIX_PATH={prefix}"]
    run(TOOLS / "cmake", "-S", source, "-B", folder, *ninja, *release, *settings, quiet=True)
    run(TOOLS / "cmake", "--build", folder, quiet=True)


def cmake_dir() -> str:
    """Where CMake finds the installed package."""
    return subprocess.run([TOOLS / "regplug", "cmake-dir"], capture_output=True, text=True, check=True).stdout.strip()


def run_in_cpp(bundles: dict[str, Path]) -> list[Outcome]:
    """Build the C++ program, and run it with each kind of program."""
    build(HERE, BUILD / "cpp")
    outcomes = []
    for program, kind, title in (
        ("digits", "torchscript", "C++, TorchScript"),
        ("digits", "aotinductor", "C++, AOTInductor"),
        ("digits_without_libtorch", "aotinductor", "C++ without libtorch"),
    ):
        arguments = (*bundles.values(), BUILD / "tokens.safetensors", BUILD / "out.safetensors")
        times = json.loads(run(BUILD / "cpp" / program, kind, *arguments, quiet=True))
        outcomes.append(outcome_of(title, load_file(BUILD / "out.safetensors"), times))
    return outcomes


def run_on_aarch64(bundles: dict[str, Path]) -> Outcome:
    """Build regplug-run for 64-bit ARM, without libtorch, and run it in an emulator, which says nothing about speed."""
    machine = [
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={CROSS_COMPILER}",
    ]
    source = Path(cmake_dir(), "share", "regplug-run")
    build(source, BUILD / "aarch64", "-DREGPLUG_RUN_WITH=runtime", *machine)
    out: dict[str, Tensor] = {}
    for name, given in (("readout", "registers"), ("conditioner", "tokens")):
        words = [bundles[name], BUILD / f"{given}.safetensors", BUILD / "out.safetensors"]
        run(EMULATOR, "-L", "/usr/aarch64-linux-gnu", BUILD / "aarch64" / "regplug-run", *words, quiet=True)
        out |= load_file(BUILD / "out.safetensors")
    return outcome_of("C++, aarch64, emulated", out, {})


def run_without_torch(bundles: dict[str, Path], tokens: Tensor, positions: Sequence[int]) -> Outcome:
    """Run the bundles in a Python that imports no torch."""
    np.save(BUILD / "tokens.npy", tokens.numpy())
    arguments = (*bundles.values(), json.dumps(list(positions)), BUILD / "tokens.npy", BUILD / "out.npz")
    times = json.loads(run(sys.executable, HERE / "without_torch.py", *arguments, quiet=True))
    out = {name: torch.from_numpy(array) for name, array in np.load(BUILD / "out.npz").items()}
    return outcome_of("Python without torch", out, times)


def outcome_of(title: str, out: Mapping[str, Tensor], times: Mapping[str, float]) -> Outcome:
    """The outputs of another process by their names in the manifest."""
    pairs = [out[f"{word}_{layer}"] for layer in range((len(out) - 1) // 2) for word in ("gamma", "beta")]
    return Outcome(title, out["conditioning"], pairs, times)


def main() -> None:
    """Do it all, and print one table."""
    torch.set_num_threads(1)
    run(TOOLS / "regplug", "list")
    run(TOOLS / "regplug", "cond-dim", "--backbone", "digits-vit")

    model = load_pretrained()
    last, layout = model.blocks[-1], model.layout
    spec = regplug.resolve(
        model.options["readout"],
        num_registers=layout.num_registers,
        hidden_dim=layout.hidden_dim,
        **model.options["readout_options"],
    )
    trained = {"readout": last.readout, "conditioner": regplug.Conditioner(layout, last.readout, last.film)}
    bundles = {name: BUILD / name for name in trained}
    missing = [tool for tool in (CROSS_COMPILER, EMULATOR) if not shutil.which(tool)]
    with_aarch64 = not missing and platform.machine() == "x86_64"
    settings = {"aotinductor": {"isa": ["x86-64-v3", "armv8-a"]}} if with_aarch64 else {}
    print()
    for name, module in trained.items():
        with console.status(f"exporting the {name}"):
            done = regplug.export(
                *(spec, module, bundles[name]), backends=list(PROGRAMS), settings=settings, layout=layout, force=True
            )
        print(f"exported the trained {name}: {done.directory}, digest {done.digest}", flush=True)
    for folder in bundles.values():
        run(TOOLS / "regplug", "verify", "--programs", folder)

    _, test = load()
    with torch.inference_mode():
        tokens = model.last_tokens(test.images)
        registers = tokens[:, list(layout.positions(tokens.shape[1]))]
    for given, tensor in (("tokens", tokens), ("registers", registers)):
        save_file({given: tensor.contiguous()}, BUILD / f"{given}.safetensors")
    double = {name: regplug.load(folder).double() for name, folder in bundles.items()}
    with torch.inference_mode():
        true_conditioning = double["readout"](registers.double())
        true_pairs = flat(double["conditioner"](tokens.double()))
    loaded = {name: regplug.load(folder) for name, folder in bundles.items()}
    programs = {backend: [regplug.load(folder, program=backend) for folder in bundles.values()] for backend in PROGRAMS}
    with console.status("torch.compile"):
        fast = {name: compiled(module) for name, module in loaded.items()}
        with torch.inference_mode():
            fast["readout"](registers), fast["conditioner"](tokens)
    outcomes = [
        outcome("Python, eager", loaded["readout"], loaded["conditioner"], registers, tokens),
        outcome("Python, torch.compile", fast["readout"], fast["conditioner"], registers, tokens),
        *(outcome(f"Python, {PROGRAMS[backend]}", *pair, registers, tokens) for backend, pair in programs.items()),
        *run_in_cpp(bundles),
        *([run_on_aarch64(bundles)] if with_aarch64 else []),
        run_without_torch(bundles, tokens, layout.positions(tokens.shape[1])),
    ]

    table = Table(title=f"\n{len(test)} held-out digits, {spec.strategy}, cond_dim {spec.cond_dim}; one thread")
    table.add_column("program")
    for column in ("error, conditioning", "error, FiLM pairs", "accuracy", "us, readout B=1", "us, conditioner B=1"):
        table.add_column(column, justify="right")
    worst = 0.0
    for one in outcomes:
        with torch.inference_mode():
            right = (model(test.images, conditioning=one.conditioning).argmax(-1) == test.labels).sum().item()
        errors = largest_error([one.conditioning], [true_conditioning]), largest_error(one.pairs, true_pairs)
        worst = max(worst, *errors)
        table.add_row(
            one.name,
            *(f"{error:.1e}" for error in errors),
            f"{100 * right / len(test):.2f} %",
            *(f"{one.microseconds[name]:.1f}" if one.microseconds else "-" for name in trained),
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print("errors are the largest, against a float64 forward; the accuracy is what the network reaches when it goes on")
    print("from each one's conditioning vector in its last block")
    if missing and platform.machine() == "x86_64":
        packages = "g++-aarch64-linux-gnu qemu-user-static"
        print(f"aarch64 was not run: expected {' and '.join(missing)}, got none; install: apt-get install {packages}")
    if worst > 1e-4:
        sys.exit(f"demo: expected errors below 1e-4, got {worst:.1e}")


if __name__ == "__main__":
    main()
