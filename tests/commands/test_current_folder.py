"""No command, and no process that a command starts, runs a file of the working directory."""

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import regplug
from regplug.backends.python_child import python_code, python_command
from regplug.commands.main import group

pytestmark = pytest.mark.slow

TOOLS = Path(sys.executable).parent
OURS = ["torch", "pluggy", "click", "rich", "safetensors", "numpy", "sympy", "filelock", "typing_extensions"]
EXPORT = ["export", "mean", "--num-registers", "3", "--hidden-dim", "7"]


def is_here(name):
    """Whether this system has the module: Python may look in the folder for one that it lacks."""
    with suppress(ValueError):
        return importlib.util.find_spec(name) is not None
    return False


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a file for each module of Python and regplug, which leaves a trace when it runs."""
    folder = tmp_path_factory.mktemp("here")
    modules = [name for name in sys.stdlib_module_names if name in sys.builtin_module_names or is_here(name)]
    for name in sorted({*modules, *OURS, "regplug_zoo", "conftest", "sitecustomize"} - {"__main__"}):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'a').write({name!r} + ' ')\n")
    (folder / "regplug").mkdir()
    (folder / "regplug" / "__init__.py").write_text((folder / "random.py").read_text())
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    spec = regplug.resolve("mean", num_registers=3, hidden_dim=7)
    return regplug.export(spec, spec.build(), tmp_path_factory.mktemp("bundle") / "b").directory


@pytest.fixture
def run(here, tmp_path):
    """Run a command in that folder; gives the process, and the modules of the folder that ran."""

    def started(*words, **variables):
        (here / "ran").unlink(missing_ok=True)
        env = os.environ | {"REGPLUG_CACHE_DIR": str(tmp_path / "cache")} | variables
        env["PATH"] = f"{TOOLS}{os.pathsep}{env['PATH']}"
        words = [str(word) for word in words]
        done = subprocess.run(words, cwd=here, env=env, capture_output=True, text=True, check=False)
        ran = (here / "ran").read_text().split() if (here / "ran").exists() else []
        return done, sorted(set(ran))

    return started


def test_a_file_here_is_run_where_the_folder_is_on_the_path(run):
    _, ran = run(sys.executable, "-c", "import random")
    assert "random" in ran


RANK = ["rank", "--strategies", "mean,pool", "--seeds", "1", "--folds", "2", "--epochs", "1", "--runtime", "eager"]
COMMANDS = {
    "list": (["list"], 0),
    "version": (["--version"], 0),
    "info": (["info", "mean"], 0),
    "info of a bundle": (["info", "BUNDLE"], 0),
    "cond-dim": (["cond-dim", "mean", "--num-registers", "3", "--hidden-dim", "7"], 0),
    "export": ([*EXPORT, "-o", "OUT"], 0),
    "export to the compiler": ([*EXPORT, "--backend", "aotinductor", "-o", "OUT"], 0),
    "verify": (["verify", "BUNDLE"], 0),
    "verify programs": (["verify", "BUNDLE", "--programs"], 0),
    "check": (["check", "mean", "--backend", "torchscript", "--compiler", "eager"], 0),
    "bench": (
        [
            "bench",
            "mean",
            "--num-registers",
            "3",
            "--hidden-dim",
            "7",
            "--batch",
            "1",
            "--rounds",
            "2",
            "--mode",
            "eager",
        ],
        0,
    ),
    "audit": (["audit", "regplug.nn.film:KernelFiLMGenerator"], None),
    "rank": ([*RANK, "--data", "SAMPLES", "--cache", "OUT", "--jobs", "2"], 0),
    "run": (["run", "BUNDLE", "REGISTERS", "-o", "OUT", "--workers", "1"], 0),
    "doctor": (["doctor"], None),
    "cache": (["cache"], 0),
    "import": (["import", "BUNDLE/weights.safetensors", "--backbone", "digits", "-o", "OUT"], None),
    "sign": (["sign", "BUNDLE", "--key", "none"], 1),
    "cmake-dir": (["cmake-dir"], 0),
    "include-dir": (["include-dir"], 0),
}


MARKS = {
    "export to the compiler": pytest.mark.compiler,
    "verify programs": pytest.mark.torture,
    "info": pytest.mark.torture,  # it imports torch, as `export` does
}
# the doctor imports each plugin in a process of its own, and these take seconds; regplug and its zoo are enough
HEAVY = [f"regplug-{name}" for name in ("digits", "nvsubquadratic", "onnx", "timm", "transformers")]


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in COMMANDS])
def test_a_command_runs_no_file_of_the_folder_it_is_called_in(run, bundle, tmp_path, name):
    words, code = COMMANDS[name]
    places = {"BUNDLE": bundle, "OUT": tmp_path / "out", "SAMPLES": tmp_path / "samples.npz"}
    places["REGISTERS"] = tmp_path / "registers.safetensors"
    save_file({"registers": torch.zeros(4, 3, 7)}, places["REGISTERS"])
    np.savez(places["SAMPLES"], registers=np.random.default_rng(0).random((40, 3, 4)), labels=np.arange(40) % 2)
    for word, place in places.items():
        words = [one.replace(word, str(place)) for one in words]
    done, ran = run("regplug", *words, **({"REGPLUG_DISABLE": ",".join(HEAVY)} if name == "doctor" else {}))
    assert ran == []
    assert done.returncode == code or code is None, done.stderr
    assert "Traceback" not in done.stderr


def test_every_command_is_tried():
    assert {words[0] for words, _ in COMMANDS.values()} - {"--version"} | {"new"} == set(group.list_commands(None))


def test_new_runs_no_file_of_the_folder_that_it_writes_into(run, here):
    done, ran = run("regplug", "new", "acme-of-a-test")
    assert (done.returncode, ran) == (0, [])


def test_python_m_looks_there_for_nothing_but_what_python_starts_with(here, tmp_path):
    for name in ("random", "queue", "json", "subprocess", "pathlib", "logging", "tempfile", "inspect", *OURS):
        (tmp_path / f"{name}.py").write_text((here / f"{name}.py").read_text())
    (here / "ran").unlink(missing_ok=True)
    words = [sys.executable, "-m", "regplug", *EXPORT, "-o", tmp_path / "out"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, (here / "ran").exists()) == (0, False), done.stderr


@pytest.mark.torture
@pytest.mark.compiler
def test_verify_in_python_starts_no_process_that_looks_there(run, bundle):
    # as in a notebook: the folder is on the path, behind all else
    code = (
        f"import sys; sys.path.append(sys.path.pop(0)); import regplug; regplug.verify({str(bundle)!r}, programs=True)"
    )
    done, ran = run(sys.executable, "-c", code)
    assert (done.returncode, ran) == (0, []), done.stderr


def child_path(run, *start, code="import sys, json; print(json.dumps(sys.path))", **variables):
    """``sys.path`` of a child that a process in the folder starts."""
    parent = f"import subprocess\nfrom regplug.backends.python_child import python_code\n{' '.join(start)}\n"
    parent += f"sys.exit(subprocess.run(python_code({code!r})).returncode)"
    script = "import sys; sys.path[:] = [one for one in sys.path if one]\n"
    done, _ = run(sys.executable, "-c", script + parent, **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_child_has_the_users_python_path_and_what_was_added_to_the_path(run, here, tmp_path):
    added = str(tmp_path / "added")
    paths = child_path(run, f"sys.path.insert(0, {added!r})", PYTHONPATH=str(tmp_path / "own"))
    assert paths[0] == added
    assert str(tmp_path / "own") in paths
    assert not {"", str(here)} & set(paths)


@pytest.mark.parametrize("entry", ["''", "str(__import__('pathlib').Path.cwd())"])
def test_a_child_has_not_the_working_directory_that_its_parent_has(run, here, entry):
    assert not {"", str(here)} & set(child_path(run, f"sys.path.insert(0, {entry})"))


def test_a_child_has_the_working_directory_where_python_path_names_it(here, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    code = "import subprocess, sys\nfrom regplug.backends.python_child import python_code\n"
    code += "subprocess.run(python_code('import sys; print(sys.path)'), check=True)"
    home = str(Path(regplug.__file__).resolve().parent.parent)
    for value in (str(site), "."):
        env = os.environ | {"PYTHONPATH": os.pathsep.join([home, value])}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=site, env=env, capture_output=True, text=True, check=True
        )
        assert repr(str(site)) in done.stdout


def test_a_child_starts_where_the_working_directory_is_gone(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    command = [sys.executable, "-c", f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})\n" + CHILD]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "started"), done.stderr


CHILD = """
import subprocess, sys
from regplug.backends.python_child import python_code
sys.exit(subprocess.run(python_code("print('started')")).returncode)
"""


def test_a_module_that_the_user_names_is_found_in_the_working_directory_and_takes_nobodys_place(run, here, tmp_path):
    (here / "own_net.py").write_text(
        "import torch, random, queue\nclass Net(torch.nn.Module):\n"
        "    def __init__(self, num_registers: int = 4, hidden_dim: int = 8):\n        super().__init__()\n"
    )
    done, ran = run("regplug", "audit", "own_net:Net")
    assert ran == []
    assert "import" not in done.stderr, done.stderr


def test_a_wrong_child_that_python_starts_plainly_is_seen(run):
    _, ran = run(sys.executable, "-m", "compileall", "-h")
    assert ran != []
    assert python_command("x")[1] == python_code("")[1] == "-c"
