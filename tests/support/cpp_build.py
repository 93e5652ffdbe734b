"""C++ programs for tests, compiled once and kept in ``build/cpp`` for all test processes and later runs."""

import fcntl
import functools
import hashlib
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import nlohmann_json
import torch

import regplug

ROOT = Path(__file__).resolve().parents[2]
BUILDS = ROOT / "build" / "cpp"
SOURCES = ROOT / "tests" / "cpp"
HEADERS = Path(regplug.__file__).parent / "include"
JSON_HEADERS = Path(nlohmann_json.__file__).parent / "include"
TORCH_HEADERS = Path(torch.__file__).parent / "include"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]
# changes that remove two checks of the readers, so that tests can detect the difference
LOOSE = {
    "safetensors": ("span.first % dtype->size != 0", "false"),
    "detail/json_fields": ("object_.items()", "Json::object().items()"),
}
UNUSED_S = 3 * 24 * 3600  # builds unused for this long are removed


@functools.cache
def version(compiler: str) -> str:
    """The version text of a compiler or tool."""
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout


def digest(*parts: object) -> str:
    """One sha256 of texts, and of folders and files by relative name and content."""
    found = hashlib.sha256()
    for part in parts:
        if not isinstance(part, Path):
            found.update(f"{part}\0".encode())
            continue
        for path in sorted(part.rglob("*")) if part.is_dir() else [part]:
            if path.is_file() and "__pycache__" not in path.parts:
                found.update(f"{path.relative_to(part)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return found.hexdigest()[:32]


def made_once(key: str, make: Callable[[Path], object]) -> Path:
    """The folder that ``make`` fills. The first process that needs it makes it, the others wait."""
    BUILDS.mkdir(parents=True, exist_ok=True)
    folder = BUILDS / key
    done = folder / "done"
    with (BUILDS / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            remove_unused()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
        done.touch()  # its time is the last use
    return folder


def remove_unused() -> None:
    """Remove builds that no recent run has used."""
    for done in BUILDS.glob("*/done"):
        if time.time() - done.stat().st_mtime > UNUSED_S:
            shutil.rmtree(done.parent, ignore_errors=True)


def compile_cpp(*arguments: object, compiler: str = "c++", headers: Path = HEADERS) -> None:
    """Compile as C++17, with warnings as errors."""
    include = ["-I", headers, "-isystem", JSON_HEADERS]
    subprocess.run([compiler, "-std=c++17", *WARNINGS, *include, *arguments], check=True)


def compiled(source: str | Path, *flags: str, compiler: str = "c++", headers: Path = HEADERS) -> Path:
    """One of the programs in tests/cpp that need no torch."""
    key = digest(version(compiler), SOURCES / source, headers, JSON_HEADERS / "nlohmann" / "json.hpp", *flags)

    def make(folder: Path) -> None:
        compile_cpp(*flags, SOURCES / source, "-o", folder / "program", compiler=compiler, headers=headers)

    return made_once(key, make) / "program"


def check_alone(header: str) -> None:
    """Compile a program that includes this one header."""
    key = digest("alone", version("c++"), header, HEADERS, JSON_HEADERS / "nlohmann" / "json.hpp", torch.__version__)

    def make(folder: Path) -> None:
        (folder / "alone.cpp").write_text(f"#include <{header}>\n")
        torch_headers = ["-isystem", TORCH_HEADERS] if "torch_tensor" in header or "torchscript" in header else []
        compile_cpp("-fsyntax-only", *torch_headers, folder / "alone.cpp")

    made_once(key, make)


def changed_headers(folder: Path, changes: dict[str, tuple[str, str]]) -> Path:
    """A copy of the headers in which each named header has one text replaced by another."""
    headers = shutil.copytree(HEADERS, folder / "include")
    for name, (old, new) in changes.items():
        path = headers / "regplug" / f"{name}.h"
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
    return headers
