"""Python processes that are forked from one that has already imported what they all need.

An interpreter that imports torch takes 1.5 seconds of CPU time, and its fork a few milliseconds.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.environment import clean_environment

LIMIT_S = 120
# a child leaves the loop and runs its job as a main program: with atexit, tracebacks and an exit status
SERVER = """
import gc, json, os, sys
{imports}
gc.freeze()  # so that no child copies the memory of all objects to look for garbage among them

def job_of_this_process():
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            return job
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    os._exit(0)

def run(job):
    for number, name in enumerate(("/dev/null", *job["output"])):
        file = os.open(name, os.O_RDWR)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    sys.argv = job["argv"]
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in os.environ
    sys.path[1:1] = [folder for folder in job["env"].get("PYTHONPATH", "").split(os.pathsep) if folder]
    code, main = compile(job["code"], "<string>", "exec"), globals()
    for name in [name for name in main if not name.startswith("__")]:
        del main[name]
    exec(code, main)

run(job_of_this_process())
"""
MODULE = "import runpy; runpy.run_module({!r}, run_name='__main__', alter_sys=True)"


class ForkedPython:
    """Runs Python as ``python -c CODE`` or ``python -m MODULE ARGUMENTS`` does, in forks of one process.

    Args:
        imports: The statement that the process begins with, such as ``import torch``.
    """

    def __init__(self, imports: str) -> None:
        command = [sys.executable, "-c", SERVER.format(imports=imports)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        # in a session of its own, so that all of it can be killed
        self._server = subprocess.Popen(command, env=clean_environment(), text=True, start_new_session=True, **pipes)

    def run(self, words: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run one process.

        Raises:
            TimeoutError: It did not end within two minutes.
        """
        kind, what, *arguments = words
        code = what if kind == "-c" else MODULE.format(what)
        with tempfile.TemporaryDirectory() as folder:
            output = [Path(folder, name) for name in ("stdout", "stderr")]
            for file in output:
                file.touch()
            job = {"code": code, "argv": [kind, *arguments], "env": dict(env), "cwd": str(cwd)}
            print(json.dumps(job | {"output": list(map(str, output))}), file=self._server.stdin, flush=True)
            if not select.select([self._server.stdout], [], [], LIMIT_S)[0]:
                os.killpg(self._server.pid, signal.SIGKILL)
                raise TimeoutError(f"{words}: expected a process that ends within {LIMIT_S} s.")
            status = int(self._server.stdout.readline())
            return subprocess.CompletedProcess(list(words), status, *(file.read_text() for file in output))

    def close(self) -> None:
        """End the process that the others are forked from."""
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()
