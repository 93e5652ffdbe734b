"""What an import changes in its process: all kinds of change, examined in one run of the doctor."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from support.distributions import write_distribution

Python = Callable[..., subprocess.CompletedProcess[str]]

OTHERS = ["digits", "nvsubquadratic", "onnx", "timm", "transformers", "zoo"]
# without a look at torch and the compiler, which other tests have
DOCTOR = """
from regplug.commands.doctor import run
from regplug.commands.doctor.command import doctor_command
run.CHECKS = ()
doctor_command(['--json', '--time-limit', '30'])
"""
PLUGIN = """
import regplug
{act}

@regplug.hookimpl
def regplug_readouts():
    return [regplug.ReadoutEntry("name-{number}", "{models}:Readout")]
"""
# What plugins do at their import, with the doctor's message about it. One plugin does all acts of a group, because each
# plugin costs a process; acts that would hide each other are in different groups.
PROBLEMS = [
    {
        "import os; os.chdir('/')": "changes the working folder to '/'",
        "import os; os.umask(0o017)": "changes the umask from 022 to 017",
        "import sys; sys.path[:] = []": "takes entries out of sys.path, or replaces it",
        "import sys; sys.meta_path.pop()": "takes something out of sys.meta_path",
        "import sys; sys.path_hooks.pop()": "takes something out of sys.path_hooks",
        "import warnings; warnings.simplefilter('error')": "makes warnings errors",
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)": "handles or ignores the signals SIGTERM",
        "import sys; sys.excepthook = print": "replaces sys.excepthook",
        "import sys; sys.unraisablehook = print": "replaces sys.unraisablehook",
        "import sys; sys.displayhook = print": "replaces sys.displayhook",
        "import threading; threading.excepthook = print": "replaces threading.excepthook",
        "import locale; locale.setlocale(locale.LC_NUMERIC, 'C.UTF-8')": "changes the locale to ",
        "import io, sys; sys.stdout = io.StringIO()": "replaces or closes sys.stdout",
        "import sys; sys.stderr.close()": "replaces or closes sys.stderr",
        "import sys; sys.stdin = None": "replaces or closes sys.stdin",
        "import threading, time; threading.Thread(target=time.sleep, args=(600,), name='mine').start()": (
            "leaves the thread 'mine' running"
        ),
        "import os; os.environ['LD_PRELOAD'] = '/x.so'": "changes the environment variables LD_PRELOAD",
        "import sys; sys.setrecursionlimit(200)": "changes the recursion limit from 1000 to 200",
        "import socket; socket.setdefaulttimeout(1)": "changes the default timeout of sockets to 1.0",
        "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (10, r.RLIM_INFINITY))": "lowers the limits RLIMIT_FSIZE",
    },
    {
        "import sys; sys.path = list(sys.path)": "takes entries out of sys.path, or replaces it",
        "import os; os.environ['PATH'] += ':/x'": "changes the environment variables PATH",
        "import os; os.close(1)": "replaces or closes descriptor 1",
        "import atexit, os; atexit.register(os._exit, 0)": "registers the exit hook _exit",
        "import json; json.loads = json.dumps = len": "replaces json.dumps, json.loads",
    },
    {"import json; json.dumps.__code__ = (lambda value: '').__code__": "replaces json.dumps"},
]
# functions that a plugin replaces; the doctor names up to five of a plugin in one message
REPLACED = [
    {
        "import hashlib; hashlib.sha256 = hashlib.md5": "hashlib.sha256",
        "import json; json.JSONDecoder.decode = len": "json.decoder.JSONDecoder.decode",
        "import builtins; builtins.open = len": "builtins.open",
        "import io; io.open = len": "io.open",
        "import os; os.replace = len": "os.replace",
    },
    {
        "import importlib.metadata as m; m.distributions = list": "importlib.metadata.distributions",
        "import subprocess; subprocess.Popen.wait = len": "subprocess.Popen.wait",
        "import threading; threading.Thread = len": "threading.Thread",
        "import pluggy; pluggy.PluginManager.unregister = len": "pluggy._manager.PluginManager.unregister",
        "import click; click.echo = len": "click.echo",
    },
]
# what large libraries do too; of a light module it is worth a warning
WARNINGS = [
    {
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
]
LEAVE_ALONE = ("import logging, json, hashlib, socket", "import sys; sys.path.append('/x')", "import os; os.getcwd()")
# plugin -> its acts, and the level and text of each message about it
PLUGINS: dict[str, tuple[list[str], list[tuple[str, str]]]] = {
    **{f"problem-{i}": ([*acts], [("problem", text) for text in acts.values()]) for i, acts in enumerate(PROBLEMS)},
    **{
        f"replaced-{i}": ([*acts], [("problem", f"replaces {', '.join(sorted(acts.values()))}")])
        for i, acts in enumerate(REPLACED)
    },
    **{f"warning-{i}": ([*acts], [("warning", text) for text in acts.values()]) for i, acts in enumerate(WARNINGS)},
    "good": ([*LEAVE_ALONE], []),
}


@pytest.fixture(scope="module")
def report(run_python: Python, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the doctor says of light modules that do all of it, and of entries that name such modules."""
    folder = tmp_path_factory.mktemp("meddling")
    (folder / "plain.py").write_text("Readout = print\n")
    for number, (name, (acts, _)) in enumerate(PLUGINS.items()):
        module = name.replace("-", "_")
        text = PLUGIN.format(act="\n".join(acts), number=number, models="plain")
        write_distribution(folder, name, {f"{module}.py": text}, {"regplug_v1": {"x": module}})
    for number, acts in ((0, [*PROBLEMS[0]][:2]), (1, [*WARNINGS[0]])):
        text = "\n".join([*acts, "Readout = print"])
        points = {"regplug_readouts_v1": {f"heavy-{number}": f"heavy_{number}:Readout"}}
        write_distribution(folder, f"heavy-{number}", {f"heavy_{number}.py": text}, points)
    blocked = ",".join(f"regplug-{name}" for name in OTHERS)
    done = run_python(f"import os; os.umask(0o022)\n{DOCTOR}", [folder], {"REGPLUG_DISABLE": blocked})
    assert (done.returncode, done.stderr) == (1, "")
    return json.loads(done.stdout)


@pytest.fixture
def messages_of(report: Any) -> Callable[[str], list[tuple[str, str]]]:
    """The level and the message of each diagnostic about a distribution."""
    return lambda name: [(one["level"], one["message"]) for one in report["findings"] if one["distribution"] == name]


@pytest.mark.parametrize("name", PLUGINS)
def test_each_change_of_the_process_by_a_light_module_is_reported_and_nothing_else(messages_of: Any, name: str) -> None:
    left = messages_of(name)
    for level, text in PLUGINS[name][1]:
        start, end = f"plugin {name!r}: its import {text}", ", for the whole process; remove that or ask its author."
        [message] = [one for one in left if one[0] == level and one[1].startswith(start) and one[1].endswith(end)]
        left.remove(message)
    assert left == []


def test_of_heavy_modules_only_problems_are_reported(messages_of: Any) -> None:
    assert messages_of("heavy-1") == []
    when = "plugin 'heavy-0': the import of what its entries name changes the "
    assert [(level, message.startswith(when)) for level, message in messages_of("heavy-0")] == [("problem", True)] * 2


def test_regplug_itself_changes_nothing(messages_of: Any) -> None:
    assert messages_of("regplug") == []


@pytest.mark.torture  # the doctor's run over the installed plugins imports most of them, too
def test_what_large_libraries_do_at_their_import_is_no_problem(run_python: Python) -> None:
    code = (
        "import json\nfrom regplug.commands.doctor.child import Surroundings\n"
        "surroundings = Surroundings({'torch', 'timm', 'transformers', 'numpy', 'onnx'})\n"
        "import numpy, torch, timm, transformers, onnx, torch._dynamo\n"
        "print(json.dumps([one.text for one in surroundings.changes() if not one.is_ordinary]))"
    )
    assert run_python(code).stdout.splitlines()[-1] == "[]"
