"""Worker processes find strategies: spawned, forked, of a DataLoader, of torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.distributions import write_distribution
from support.environment import clean_environment

READOUT = """
from torch import nn

class Attend(nn.Module):
    def __init__(self, num_registers: int, hidden_dim: int, width: int = 3):
        super().__init__()
        self.value = nn.Linear(hidden_dim, width)

    def forward(self, registers):
        return self.value(registers).mean(1)
"""

# a spawned child has only what it is given
SCRIPT = """
import json, multiprocessing, os, pathlib, sys
import regplug

OUT = pathlib.Path(sys.argv[1])

class Mine:
    @regplug.hookimpl
    def regplug_readouts(self):
        return [regplug.ReadoutEntry("mine", "acme_readouts:Attend")]

def found(name):
    try:
        return regplug.default_registry().readout_entry(name).full_name
    except regplug.NameLookupError as error:
        return str(error)

def look_up(place):
    names = ("attend", "acme:attend", "mine", "memory:mine", "acme:mine")
    (OUT / place).write_text(json.dumps({**{name: found(name) for name in names}, "torch": "torch" in sys.modules}))

class Readouts:
    def __init__(self, spec):
        self.spec = spec

    def __len__(self):
        return 1

    def __getitem__(self, index):
        import torch
        registers = torch.ones(2, 4, 8)
        own = self.spec.build()
        other = regplug.create("attend", num_registers=4, hidden_dim=8, width=5)
        third = self.spec.entry.full_name
        shapes = [list(one(registers).shape) for one in (own, other)]
        (OUT / "loader").write_text(json.dumps([type(own).__name__, *shapes, third]))
        return 0

def main():
    regplug.default_registry().register(Mine(), "memory")
    look_up("parent")
    spawn = multiprocessing.get_context("spawn")
    child = spawn.Process(target=look_up, args=("spawned",))
    child.start()
    child.join()
    from torch.utils.data import DataLoader
    spec = regplug.resolve("mine", num_registers=4, hidden_dim=8, width=6)  # of memory: it brings its entry along
    list(DataLoader(Readouts(spec), num_workers=1, multiprocessing_context=spawn))

if __name__ == "__main__":
    if "RANK" in os.environ:
        look_up("rank-" + os.environ["RANK"])
    else:
        main()
"""

FORK = """
import os, pathlib, threading
import regplug

registry = regplug.default_registry()
loading = threading.Thread(target=registry.readout_entry, args=("slow:slow-name",))
loading.start()
while not pathlib.Path("importing").exists():
    pass
child = os.fork()
if child == 0:
    os._exit(0 if registry.readout_entry("slow:slow-name").full_name == "slow:slow-name" else 1)
threading.Timer(20, os.kill, (child, 9)).start()  # instead of waiting forever
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
loading.join()
print(code, flush=True)
os._exit(0)  # the timer is no reason to stay
"""

SLOW = """
import pathlib, time, regplug
pathlib.Path("importing").touch()
time.sleep(0.5)

@regplug.hookimpl
def regplug_readouts():
    return [regplug.ReadoutEntry("slow-name", "slow_models:Slow")]
"""

HINT = "what the parent registered in memory is not known to a worker process: register it here too, or install it"


def run(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    variables = clean_environment() | {"PYTHONPATH": str(folder), "REGPLUG_CACHE_DIR": os.environ["REGPLUG_CACHE_DIR"]}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What each process said, by its name; all of them run once."""
    folder = tmp_path_factory.mktemp("workers")
    points = {"regplug_readouts_v1": {"attend": "acme_readouts:Attend"}}
    write_distribution(folder, "acme", {"acme_readouts.py": READOUT}, points)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    run(folder, script, folder)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--log-dir", folder / "logs")
    run(folder, *torchrun, script, folder)
    return lambda name: json.loads((folder / name).read_text())


@pytest.mark.slow
@pytest.mark.parametrize("process", ["parent", "spawned", "rank-0", "rank-1"])
def test_a_strategy_is_found_by_its_name_in_every_process(answers: Callable[[str], Any], process: str) -> None:
    found = answers(process)
    assert (found["attend"], found["acme:attend"]) == ("acme:attend", "acme:attend")
    assert found["torch"] is False  # to find a name a worker needs no torch either


@pytest.mark.slow
@pytest.mark.parametrize("process", ["spawned", "rank-0", "rank-1"])
def test_a_worker_says_that_it_does_not_know_what_its_parent_registered_in_memory(
    answers: Callable[[str], Any], process: str
) -> None:
    found = answers(process)
    assert found["mine"].startswith(f"strategy 'mine': not registered; {HINT}; known: ")
    assert found["memory:mine"].startswith(
        f"strategy 'memory:mine': expected an installed plugin, got 'memory'; {HINT}; known: acme, "
    )
    assert found["acme:mine"].startswith("strategy 'acme:mine': not registered; known: attend")  # it is no use there


@pytest.mark.slow
def test_the_parent_itself_gets_no_hint_about_workers(answers: Callable[[str], Any]) -> None:
    found = answers("parent")
    assert (found["mine"], found["memory:mine"]) == ("memory:mine", "memory:mine")
    assert found["acme:mine"].startswith("strategy 'acme:mine': not registered; known: attend")


@pytest.mark.slow
def test_a_spec_reaches_a_worker_with_its_entry_and_is_built_there(answers: Callable[[str], Any]) -> None:
    assert answers("loader") == ["Attend", [2, 6], [2, 5], "memory:mine"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_child_that_is_forked_while_a_plugin_is_imported_does_not_wait_forever(tmp_path: Path) -> None:
    write_distribution(tmp_path, "slow", {"slow.py": SLOW}, {"regplug_v1": {"slow": "slow"}})
    assert run(tmp_path, "-W", "ignore::DeprecationWarning", "-c", FORK).stdout.strip() == "0"
