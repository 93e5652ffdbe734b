"""``make scale``: the time of discovery with many distributions installed, compared with stevedore and pluggy.

Makes folders with inert distributions and plugin distributions, runs each way in fresh interpreters, and prints the CPU
time (user and system) of a run and its ratio to the baseline. The interpreters run with ``-S`` and one such folder on
their path, so that other installed packages do not count. It prints and asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

from rich.console import Console
from rich.table import Table
from support.distributions import write_distribution
from support.environment import clean_environment

PACKAGES = ("regplug", "click", "pluggy", "stevedore")
SIZES = ((300, 10), (300, 100), (300, 1000))
DESCRIPTION = "A sentence about it.\n" * 150  # as long as a README
LIGHT = """import regplug


@regplug.hookimpl
def regplug_readouts():
    return [regplug.ReadoutEntry("hooked-{number}", "{module}_models:Readout", summary="one of many")]
"""
COMMAND = "from regplug.commands.main import main; main()"
GROUPS = ("regplug_v1", "regplug_readouts_v1")
BASELINE = "baseline: click, pluggy, entry_points()"
# what each way runs, and with which arguments; stevedore and pluggy load the plugins' modules, as `list` does
WAYS = {
    "bare interpreter": ("pass",),
    BASELINE: (
        f"import click, pluggy\nfrom importlib.metadata import entry_points\nfor g in {GROUPS}: entry_points(group=g)",
    ),
    "the same, one entry_points() for both": (
        "import click, pluggy\nfrom importlib.metadata import entry_points\nentry_points()",
    ),
    "regplug list": (COMMAND, "list"),
    "regplug list --json": (COMMAND, "list", "--json"),
    "the entry 'plugin-0:lined-0'": ("import regplug; regplug.default_registry().readout_entry('plugin-0:lined-0')",),
    "the entry 'hooked-1', index warm": ("import regplug; regplug.default_registry().readout_entry('hooked-1')",),
    "stevedore ExtensionManager": (
        "from stevedore import ExtensionManager as M\n"
        f"for g in {GROUPS}: M(g, on_load_failure_callback=lambda *a: None).names()",
    ),
    "pluggy load_setuptools_entrypoints": (
        "import pluggy; m = pluggy.PluginManager('regplug')\n"
        f"m.load_setuptools_entrypoints({GROUPS[0]!r}); m.list_name_plugin()",
    ),
}


def make_site(site: Path, inert: int, plugins: int) -> None:
    """A folder like site-packages; half of the plugins offer a readout by an entry point, half by a hook."""
    site.mkdir()
    for name in PACKAGES:
        link_package(site, name)
    for number in range(inert):
        module = f"inert_{number}"
        points = {} if number % 3 else {"console_scripts": {f"inert-{number}": f"{module}:main"}}
        write_distribution(site, f"inert-{number}", {f"{module}.py": ""}, points, description=DESCRIPTION)
    make_plugins(site, plugins)


def make_plugins(site: Path, plugins: int) -> None:
    """One readout each; the two kinds alternate."""
    for number in range(plugins):
        module = f"plugin_{number}"
        if number % 2:
            points, text = {"regplug_v1": {"plugin": module}}, LIGHT.format(number=number, module=module)
        else:
            points = {"regplug_readouts_v1": {f"lined-{number}": f"{module}:Readout"}}
            text = "class Readout: pass\n"
        write_distribution(site, f"plugin-{number}", {f"{module}.py": text}, points, description=DESCRIPTION)


def link_package(site: Path, name: str) -> None:
    """A package that is installed here, and its metadata."""
    found = subprocess.run(
        [sys.executable, "-c", f"import {name}; print({name}.__file__)"], capture_output=True, text=True, check=True
    )
    (site / name).symlink_to(Path(found.stdout.strip()).parent)
    [metadata] = [file for file in distribution(name).files or () if file.name == "METADATA"]
    info = Path(str(metadata.locate())).parent
    (site / info.name).symlink_to(info)


def cpu_seconds(site: Path, cache: Path, way: Sequence[str]) -> float:
    """CPU time of one interpreter from start to end."""
    caches = {"REGPLUG_CACHE_DIR": str(cache), "XDG_CACHE_HOME": str(cache)}  # stevedore keeps entry points in one
    env = clean_environment() | caches | {"PYTHONPATH": str(site)}
    child = subprocess.Popen([sys.executable, "-S", "-c", *way], env=env, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"error: exit code {child.returncode} of: {way[0]}")
    return usage.ru_utime + usage.ru_stime


def measure(site: Path, cache: Path, rounds: int) -> dict[str, float]:
    """The median of each way. Each round measures all of them, so that a busy moment affects all."""
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):
        for name, way in WAYS.items():
            seconds = cpu_seconds(site, cache, way)
            if number:  # the first round writes bytecode and the name cache
                taken[name].append(seconds)
    return {name: statistics.median(one) for name, one in taken.items()}


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    found = []
    with tempfile.TemporaryDirectory() as name, Console(stderr=True).status("timing"):
        for inert, plugins in SIZES:
            site = Path(name) / f"{inert}-{plugins}"
            make_site(site, inert, plugins)
            found.append(measure(site, Path(name) / f"cache-{plugins}", rounds))
    table = Table(title="CPU ms of a fresh process (ratio to the baseline); with 300 other distributions")
    table.add_column("")
    for _, plugins in SIZES:
        table.add_column(f"{plugins} plugins", justify="right")
    for way in WAYS:
        table.add_row(way, *(f"{one[way] * 1000:.1f} ({one[way] / one[BASELINE]:.2f})" for one in found))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
