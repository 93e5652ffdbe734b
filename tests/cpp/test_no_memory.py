"""Each allocation of ``regplug-run`` over the runtime fails once: the end is one line that says so, or the result."""

import os
import re
import subprocess
from collections import Counter

import pytest
import torch
from support.consumer import CONSUMER, built_without_libtorch, readout

import regplug
from regplug.format.weights import save_tensors

pytestmark = pytest.mark.compiler

SAID = re.compile(r"error: (.*: )?expected (enough )?memory.*, got none\.|error: bundle \S+: Cannot allocate memory\.")
# outside of this code: nlohmann/json cannot report missing memory for small values, nor glibc for thread-local data
ABORTED = ("terminate called", "cannot allocate memory for thread-local data: ABORT")


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    regplug.export(*readout("compress-concat"), folder / "b", backends=["aotinductor"])
    (folder / "in.safetensors").write_bytes(save_tensors({"registers": torch.randn(3, 4, 24)}))
    program = built_without_libtorch() / "regplug-run" / "regplug-run"
    return [program, folder / "b", folder / "in.safetensors", folder / "out.safetensors"]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("library") / "no_memory.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, CONSUMER / "no_memory.c"], check=True)
    return path


def outcome(command, library, failed):
    """How the command ends when that allocation fails: "right", "refused", "aborted", or what it printed."""
    environment = {**os.environ, "LD_PRELOAD": str(library), "FAILED": str(failed)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    last = done.stderr.splitlines()[-1] if done.stderr else ""
    if done.returncode == 0 and not done.stderr:
        return "right"
    if done.returncode == 1 and SAID.fullmatch(last):
        return "refused"
    if done.returncode in (-6, 127) and done.stderr.startswith(ABORTED):
        return "aborted"
    return f"{done.returncode}: {done.stderr}"


def test_some_allocations_that_fail_are_errors_in_one_line(command, library):
    found = Counter(outcome(command, library, failed) for failed in range(2, 2600, 53))
    assert found.keys() <= {"right", "refused", "aborted"}
    assert found["refused"] > 30


@pytest.mark.torture
def test_each_allocation_that_fails_is_an_error_in_one_line(command, library):
    found = Counter(outcome(command, library, failed) for failed in range(1, 2600))
    assert found.keys() <= {"right", "refused", "aborted"}
    assert found["aborted"] < 20
    assert found["refused"] > 2000


def test_an_abort_or_another_message_is_not_a_refusal(library):
    for code, wanted in (
        ("import os, sys; sys.stderr.write('error: none.\\n'); sys.exit(1)", "1: error: none.\n"),
        ("import os; os.abort()", "-6: "),
    ):
        assert outcome(["python3", "-c", code], library, 10**9) == wanted
