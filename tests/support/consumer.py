"""Builds a consumer's CMake project with the tools that pip installed, and runs its programs."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

import regplug
from support import cpp_build
from support.damage import damaged_copies
from support.readouts import SIZES

CONSUMER = Path(__file__).resolve().parents[1] / "cpp"
SITE = Path(torch.__file__).parent.parent
LAYOUTS = {
    "prefix": regplug.TokenLayout(**SIZES, start=1),
    "suffix": regplug.TokenLayout(**SIZES, start=-6),
    "indices": regplug.TokenLayout(**SIZES, indices=(0, 2, 3, 9), num_tokens=11),
    "interleaved": regplug.TokenLayout.interleaved(**SIZES, num_patches=14),
}


def tool(name):
    """A tool that pip installed for this Python."""
    path = Path(sys.executable).with_name(name)
    assert path.exists(), f"{name} is not installed; `make test` installs it"
    return str(path)


def build(folder, source=CONSUMER, settings=(), target="all", env=None):
    settings = {"CMAKE_BUILD_TYPE": "Release", "CMAKE_MAKE_PROGRAM": tool("ninja"), **dict(settings)}
    configure = [tool("cmake"), "-S", source, "-B", folder, "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in settings.items()]
    for command in (configure, [tool("cmake"), "--build", folder, "--target", *target.split()]):
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


def installed():
    """Where CMake finds the installed wheel, torch and nlohmann/json."""
    root = subprocess.run([tool("regplug"), "cmake-dir"], capture_output=True, text=True, check=True).stdout.strip()
    return f"{root};{SITE}"


def built_with(settings=(), target="all", source=CONSUMER, prefix=None, env=None):
    """The folder of a CMake project's programs, built once against the installed package (or ``prefix``)."""
    prefix = installed() if prefix is None else prefix
    package = Path(prefix.partition(";")[0])
    contents = [package / "include", package / "share"]
    contents += [path for path in sorted(CONSUMER.rglob("*")) if path.suffix in {".cpp", ".h", ".txt", ".c"}]
    contents += [cpp_build.JSON_HEADERS / "nlohmann" / "json.hpp"]
    # as text: a digest of all files there takes 4 seconds
    versions = [cpp_build.version("c++"), cpp_build.version(tool("cmake")), torch.__version__, str(SITE)]
    key = cpp_build.digest(*versions, *contents, sorted(dict(settings).items()), target, source.name, env is None)

    def make(folder):
        build(folder, source, {"CMAKE_PREFIX_PATH": prefix, **dict(settings)}, target, env)
        for path in folder.rglob("*.o"):
            path.unlink()

    return cpp_build.made_once(key, make)


@functools.cache
def built():
    """The consumer's programs, C++17, without optimizations, which would take half as long again."""
    return built_with({"CMAKE_CXX_STANDARD": 17, "CMAKE_BUILD_TYPE": "None", "CMAKE_CXX_FLAGS": "-O0"})


@functools.cache
def built_without_libtorch(cblas="OFF"):
    """The programs over regplug::runtime, and what is in ``cpp/runtime``."""
    settings = {"CMAKE_BUILD_TYPE": "None", "CMAKE_CXX_FLAGS": "-O0", "REGPLUG_RUNTIME_CBLAS": cblas}
    return built_with(settings, source=CONSUMER / "runtime")


def rustc():
    """The first Rust compiler on PATH that runs: rustup's needs a toolchain in the home folder."""
    found = [Path(folder, "rustc") for folder in os.environ["PATH"].split(os.pathsep)]
    return next(path for path in found if path.exists() and not run(path, "--version")[0])


@functools.cache
def built_in_rust():
    """``cpp/runtime/run_in_rust.rs`` over libregplug."""
    source, library = CONSUMER / "runtime" / "run_in_rust.rs", built_without_libtorch() / "regplug-runtime"
    link = ["-L", f"native={library}", "-C", f"link-arg=-Wl,-rpath,{library}"]
    compiler = rustc()
    command = [compiler, "--edition=2021", "-D", "warnings", *link, source, "-o"]

    def make(folder):
        subprocess.run([*command, folder / "run_in_rust"], check=True)

    return cpp_build.made_once(cpp_build.digest(cpp_build.version(compiler), source, *link), make) / "run_in_rust"


def run(program, *arguments, env=None, timeout=120):
    """Exit status and what a program printed."""
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, env=env, timeout=timeout, check=False
    )
    return done.returncode, done.stdout


def open_damaged(program, bundle, folder, *arguments, run=run):
    """What a program prints for each damaged copy of the bundle, and what it must print; one process opens them all."""
    copies = damaged_copies(bundle, folder)
    _, out = run(program, *(copy for copy, _ in copies.values()), *arguments)
    lines = out.splitlines()
    assert len(lines) == len(copies), f"ends after {lines[-1:]}"
    return {case: (line, copies[case][1]) for case, line in zip(copies, lines, strict=True)}


def check_golden(program, *arguments, env=None):
    """The report of a program that runs every golden case; they all hold."""
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return json.loads(done.stdout)


def readout(strategy, **sizes):
    """A small readout and its spec, always the same."""
    options = {"compressed_dim": 6} if strategy == "compress-concat" else {}
    spec = regplug.resolve(strategy, **{**SIZES, **sizes}, **options)
    torch.manual_seed(0)
    return spec, spec.build()


def conditioner(place):
    """A conditioner on the layout of that name, and its spec."""
    spec, module = readout("pool")
    film = regplug.pair(
        spec,
        regplug.KernelFiLMGenerator,
        kernel_hidden_dim=5,
        num_film_layers=2,
        init_type="small_random",
        init_std=0.5,
    )
    return spec, regplug.Conditioner(LAYOUTS[place], module, film)
