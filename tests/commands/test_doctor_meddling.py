"""What an import changes in the process: one row for each kind, all of them examined in one run of the doctor."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from support.distributions import write_distribution

Python = Callable[..., subprocess.CompletedProcess[str]]

OTHERS = ["digits", "nvsubquadratic", "onnx", "timm", "transformers", "zoo"]
DOCTOR = "from regplug.commands.doctor.command import doctor_command; doctor_command(['--json', '--time-limit', '30'])"
PLUGIN = """
import regplug
{act}

@regplug.hookimpl
def regplug_readouts():
    return [regplug.ReadoutEntry("name-{number}", "{models}:Readout")]
"""
# what a plugin does at its import -> what the doctor says of it
PROBLEMS = {
    "import os; os.chdir('/')": "changes the working folder to '/'",
    "import os; os.umask(0o017)": "changes the umask from 022 to 017",
    "import sys; sys.path[:] = []": "takes entries out of sys.path, or replaces it",
    "import sys; sys.path = list(sys.path)": "takes entries out of sys.path, or replaces it",
    "import sys; sys.meta_path.pop()": "takes something out of sys.meta_path",
    "import sys; sys.path_hooks.pop()": "takes something out of sys.path_hooks",
    "import warnings; warnings.simplefilter('error')": "makes warnings errors",
    "import hashlib; hashlib.sha256 = hashlib.md5": "replaces hashlib.sha256",
    "import json; json.loads = json.dumps = len": "replaces json.dumps, json.loads",
    "import json; json.JSONDecoder.decode = len": "replaces json.decoder.JSONDecoder.decode",
    "import builtins; builtins.open = len": "replaces builtins.open",
    "import io; io.open = len": "replaces io.open",
    "import os; os.replace = len": "replaces os.replace",
    "import importlib.metadata as m; m.distributions = list": "replaces importlib.metadata.distributions",
    "import subprocess; subprocess.Popen.wait = len": "replaces subprocess.Popen.wait",
    "import threading; threading.Thread = len": "replaces threading.Thread",
    "import pluggy; pluggy.PluginManager.unregister = len": "replaces pluggy._manager.PluginManager.unregister",
    "import click; click.echo = len": "replaces click.echo",
    "import json; json.dumps.__code__ = (lambda value: '').__code__": "replaces json.dumps",
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)": "handles or ignores the signals SIGINT",
    "import sys; sys.excepthook = print": "replaces sys.excepthook",
    "import sys; sys.unraisablehook = print": "replaces sys.unraisablehook",
    "import sys; sys.displayhook = print": "replaces sys.displayhook",
    "import threading; threading.excepthook = print": "replaces threading.excepthook",
    "import locale; locale.setlocale(locale.LC_NUMERIC, 'C.UTF-8')": "changes the locale to ",
    "import io, sys; sys.stdout = io.StringIO()": "replaces or closes sys.stdout",
    "import sys; sys.stderr.close()": "replaces or closes sys.stderr",
    "import sys; sys.stdin = None": "replaces or closes sys.stdin",
    "import os; os.close(1)": "replaces or closes descriptor 1",
    "import threading, time; threading.Thread(target=time.sleep, args=(600,), name='mine').start()": (
        "leaves the thread 'mine' running"
    ),
    "import atexit, os; atexit.register(os._exit, 0)": "registers the exit hook _exit",
    "import os; os.environ['LD_PRELOAD'] = '/x.so'": "changes the environment variables LD_PRELOAD",
    "import os; os.environ['PATH'] += ':/x'": "changes the environment variables PATH",
    "import sys; sys.setrecursionlimit(200)": "changes the recursion limit from 1000 to 200",
    "import socket; socket.setdefaulttimeout(1)": "changes the default timeout of sockets to 1.0",
    "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (10, r.RLIM_INFINITY))": "lowers the limits RLIMIT_FSIZE",
}
# what large libraries do too; of a light module it is worth a warning
WARNINGS = {
    "import warnings; warnings.filterwarnings('ignore', 'never')": "adds 1 filters of warnings",
    "import os; os.environ['ACME_HOME'] = '/x'": "changes the environment variables ACME_HOME",
    "import sys; sys.path.insert(0, '/x')": "puts '/x' before others in sys.path",
    "import sys; sys.meta_path.append(object())": "puts something into sys.meta_path",
    "import threading, time; threading.Thread(target=time.sleep, args=(600,), name='mine', daemon=True).start()": (
        "leaves the thread 'mine' running"
    ),
    "import atexit, time; atexit.register(time.sleep, 600)": "registers the exit hook sleep",
    "import sys; sys.setrecursionlimit(5000)": "changes the recursion limit from 1000 to 5000",
}
LEAVE_ALONE = ("import logging, json, hashlib, socket", "import sys; sys.path.append('/x')", "import os; os.getcwd()")
EVERY = [*PROBLEMS, *WARNINGS, *LEAVE_ALONE]


@pytest.fixture(scope="module")
def report(run_python: Python, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the doctor says of light modules that do all of it, each its own, and of entries that name such modules."""
    folder = tmp_path_factory.mktemp("meddling")
    (folder / "plain.py").write_text("Readout = print\n")
    for number, act in enumerate(EVERY):
        text = PLUGIN.format(act=act, number=number, models="plain")
        points = {"regplug_v1": {"x": f"light_{number}"}}
        write_distribution(folder, f"light-{number}", {f"light_{number}.py": text}, points)
    for number, acts in ((0, [*PROBLEMS][:2]), (1, WARNINGS)):
        text = "\n".join([*acts, "Readout = print"])
        points = {"regplug_readouts_v1": {f"heavy-{number}": f"heavy_{number}:Readout"}}
        write_distribution(folder, f"heavy-{number}", {f"heavy_{number}.py": text}, points)
    blocked = ",".join(f"regplug-{name}" for name in OTHERS)
    done = run_python(f"import os; os.umask(0o022)\n{DOCTOR}", [folder], {"REGPLUG_DISABLE": blocked})
    assert (done.returncode, done.stderr) == (1, "")
    return json.loads(done.stdout)


@pytest.fixture
def said(report: Any) -> Callable[[str], list[tuple[str, str]]]:
    """The level and the message of all that was found of a distribution."""
    return lambda name: [(one["level"], one["message"]) for one in report["findings"] if one["distribution"] == name]


@pytest.mark.parametrize("act", [*PROBLEMS, *WARNINGS])
def test_what_a_light_module_changes_in_the_process_is_named(said: Any, act: str) -> None:
    name = f"light-{EVERY.index(act)}"
    level, text = ("problem", PROBLEMS[act]) if act in PROBLEMS else ("warning", WARNINGS[act])
    [(found, message)] = said(name)
    assert found == level
    assert message.startswith(f"plugin {name!r}: its import {text}")
    assert message.endswith(", for the whole process; remove that or ask its author.")


@pytest.mark.parametrize("act", LEAVE_ALONE)
def test_what_any_module_may_do_is_not_spoken_of(said: Any, act: str) -> None:
    assert said(f"light-{EVERY.index(act)}") == []


def test_of_what_entries_name_only_problems_are_named(said: Any) -> None:
    assert said("heavy-1") == []
    when = "plugin 'heavy-0': the import of what its entries name changes the "
    assert [(level, message.startswith(when)) for level, message in said("heavy-0")] == [("problem", True)] * 2


def test_regplug_itself_changes_nothing(said: Any) -> None:
    assert said("regplug") == []


def test_what_large_libraries_do_at_their_import_is_no_problem(run_python: Python) -> None:
    code = (
        "import json\nfrom regplug.commands.doctor.child import Surroundings\n"
        "surroundings = Surroundings({'torch', 'timm', 'transformers', 'numpy', 'onnx'})\n"
        "import numpy, torch, timm, transformers, onnx, torch._dynamo\n"
        "print(json.dumps([one.text for one in surroundings.changes() if not one.is_ordinary]))"
    )
    assert run_python(code).stdout.splitlines()[-1] == "[]"
