"""Checks what regplug needs: Python, torch, C++ tools and the cache folder. Imports none of it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from regplug.backends.child_process import Ended, format_exit, run_bounded, run_elsewhere, until
from regplug.backends.compiler import compiler_words
from regplug.backends.python_child import python_code
from regplug.commands.doctor.diagnostics import OK, PROBLEM, WARNING, clip
from regplug.registry.discovery import NO_METADATA
from regplug.registry.distributions import UNKNOWN, version_of
from regplug.registry.names import OWN
from regplug.registry.version import own_version

MIN_PYTHON, MIN_TORCH, MIN_CMAKE = (3, 10), (2, 10), (3, 23)
TORCH_LIMIT, TOOL_LIMIT = 120.0, 30.0
TORCH = """
import time
begin = time.perf_counter()
try:
    import torch
except Exception as error:
    is_missing = isinstance(error, ModuleNotFoundError) and error.name == "torch"
    print("missing" if is_missing else "failed", type(error).__name__, *str(error).splitlines()[:1])
else:
    print("found", torch.__version__, time.perf_counter() - begin)
"""
PROGRAM = "#include <string>\nint main() { return static_cast<int>(std::string{}.size()); }\n"

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Requirement:
    """One thing that regplug needs.

    Args:
        name: What it is.
        found: What was found, such as its version.
        level: ``ok``, ``warning`` or ``problem``.
        message: What does not work without it, and what to do.
    """

    name: str
    found: str
    level: str = OK
    message: str = ""


def check_python(stop: Stop) -> Requirement:
    """The interpreter."""
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] < MIN_PYTHON:
        return Requirement("Python", found, PROBLEM, f"expected {_dotted(MIN_PYTHON)} or newer.")
    return Requirement("Python", found)


def check_torch(stop: Stop) -> Requirement:
    """torch, imported in a child process, because a damaged one may crash it."""
    ended = run_elsewhere(python_code(TORCH), until(TORCH_LIMIT, stop))
    match = re.search(r"^found (\S+) ([\d.e+-]+)$", ended.out, re.MULTILINE)
    install = f"install torch>={_dotted(MIN_TORCH)}."
    if match is None:
        if re.search("^missing ", ended.out, re.MULTILINE):
            return Requirement("torch", "none", PROBLEM, f"nothing can be built; {install}")
        failed = re.search(r"^failed (.+)$", ended.out, re.MULTILINE)
        reason = clip(failed[1]) if failed else _format(ended, TORCH_LIMIT)
        return Requirement("torch", "does not import", PROBLEM, f"{reason.rstrip('.')}; {install}")
    found = f"{match[1]}, imported in {float(match[2]):.1f} s"
    if _numbers(match[1]) < MIN_TORCH:
        return Requirement("torch", found, PROBLEM, f"expected {_dotted(MIN_TORCH)} or newer; {install}")
    return Requirement("torch", found)


def check_compiler(stop: Stop) -> Requirement:
    """The C++ compiler that the aotinductor backend calls."""
    without = "no export to aotinductor, no build of C++ programs"
    words = compiler_words()
    if words is None:
        return Requirement(
            "C++ compiler",
            f"none ({os.environ.get('CXX') or 'c++'})",
            WARNING,
            f"{without}; install one, as `apt-get install g++` does.",
        )
    version = _run([*words, "--version"], TOOL_LIMIT, stop).out.strip().partition("\n")[0]
    found = f"{clip(version, 60) or 'no version'} ({' '.join(words)})"
    script = 'text="$1"; shift; printf %s "$text" | "$@" -std=c++17 -fsyntax-only -x c++ -'
    command = ["/bin/sh", "-c", script, "sh", PROGRAM, *words]
    tried = _run(command, TOOL_LIMIT, stop)
    if tried.code != 0:
        reason = next((line for line in tried.err.splitlines() if "error" in line), _format(tried, TOOL_LIMIT))
        return Requirement(
            "C++ compiler", found, WARNING, f"{without}: a program of two lines fails: {clip(reason, 200)}"
        )
    return Requirement("C++ compiler", found)


def check_cmake(stop: Stop) -> Requirement:
    """CMake."""
    without = "no build of C++ programs by find_package(regplug)"
    path = _tool("cmake")
    if path is None:
        return Requirement("CMake", "none", WARNING, f"{without}; pip install 'regplug[cpp]'.")
    ended = _run([path, "--version"], TOOL_LIMIT, stop)
    match = re.search(r"version (\d[\d.]*)", ended.out)
    if ended.code != 0 or match is None:
        return Requirement("CMake", path, WARNING, f"{without}: `cmake --version`: {_format(ended, TOOL_LIMIT)}.")
    found = f"{match[1]} ({path})"
    if _numbers(match[1]) < MIN_CMAKE:
        return Requirement("CMake", found, WARNING, f"{without}: expected {_dotted(MIN_CMAKE)} or newer.")
    return Requirement("CMake", found)


def check_ninja(stop: Stop) -> Requirement:
    """ninja, or make instead."""
    path = _tool("ninja")
    if path is not None:
        ended = _run([path, "--version"], TOOL_LIMIT, stop)
        if ended.code == 0:
            return Requirement("ninja", f"{clip(ended.out, 40)} ({path})")
    make = _tool("make")
    if make is not None:
        return Requirement("ninja", f"none; CMake uses make ({make})")
    return Requirement(
        "ninja", "none", WARNING, "no build of C++ programs, because there is no make either; pip install ninja."
    )


def check_json(stop: Stop) -> Requirement:
    """nlohmann/json, which the C++ headers include, in the places where the CMake configuration looks."""
    prefixes = [*os.environ.get("CMAKE_PREFIX_PATH", "").replace(";", os.pathsep).split(os.pathsep), *sys.path]
    folders = [Path(prefix) / inner for prefix in prefixes if prefix for inner in ("nlohmann_json/include", "include")]
    folders += [Path("/usr/local/include"), Path("/usr/include")]
    for folder in folders:
        path = folder / "nlohmann" / "json.hpp"
        if path.is_file():
            return Requirement("nlohmann/json", f"{_json_version(path.parent)} ({folder})")
    message = "no build of C++ programs; pip install nlohmann-json, and name its site-packages in CMAKE_PREFIX_PATH."
    return Requirement("nlohmann/json", "none", WARNING, message)


def check_headers(stop: Stop) -> Requirement:
    """The C++ headers in this package, and whether they are of the package's version."""
    folder = Path(__file__).parents[2] / "include" / "regplug"
    found = own_version()
    if not (folder / "version.h").is_file():
        message = "no C++ programs can be built: regplug is in an archive; unpack or install it."
        return Requirement("C++ headers", f"{found} ({folder})", WARNING, message)
    package = version_of(OWN)
    if package == UNKNOWN:
        return Requirement("C++ headers", f"{found} ({folder})", WARNING, f"{NO_METADATA}.")
    if found != package:
        message = f"expected the package's version, {package}; install regplug again."
        return Requirement("C++ headers", f"{found} ({folder})", PROBLEM, message)
    return Requirement("C++ headers", f"{found} ({folder})")


def check_cache(stop: Stop) -> Requirement:
    """The folder of compiled programs: it exists and only this user can write to it, or it can be created."""
    from regplug.registry.cache_folder import cache_folder, check_ours

    consequence = "every export to aotinductor compiles again; use another REGPLUG_CACHE_DIR."
    folder = None
    try:
        folder = cache_folder()
        if folder.exists():
            check_ours(folder)
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
            raise PermissionError(None, "not writable")
    except OSError as error:
        return Requirement("cache folder", str(folder or "none"), WARNING, f"{error.strerror or error}: {consequence}")
    return Requirement("cache folder", f"{folder}" if folder.exists() else f"{folder} (created at first use)")


CHECKS: tuple[Callable[[Stop], Requirement], ...] = (
    check_python,
    check_torch,
    check_compiler,
    check_cmake,
    check_ninja,
    check_json,
    check_headers,
    check_cache,
)


def _run(command: list[str], limit: float, stop: Stop) -> Ended:
    try:
        return run_bounded(command, until(limit, stop))
    except OSError as error:  # a file that this machine cannot run
        return Ended(127, err=f"error: {error.strerror}")


def _format(ended: Ended, limit: float) -> str:
    return f"no end within {limit:g} s" if ended.code is None else clip(ended.err, 200) or format_exit(ended.code)


def _tool(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _json_version(folder: Path) -> str:
    for name in ("json.hpp", "detail/abi_macros.hpp"):
        try:
            text = (folder / name).read_text(errors="replace")
        except OSError:
            continue
        numbers = re.findall(r"#define\s+NLOHMANN_JSON_VERSION_(?:MAJOR|MINOR|PATCH)\s+(\d+)", text)
        if numbers:
            return ".".join(numbers)
    return "unknown version"
