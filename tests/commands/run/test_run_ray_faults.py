"""Runs on Ray whose worker, driver or node is killed, and clusters that are not there.

| what happens | what is checked |
|---|---|
| SIGKILL of a Ray worker, of one node of two | the run completes |
| a file that ends its Ray worker each time | it is reported, and the others are run |
| SIGKILL of the driver | Ray's workers end; the same command does the rest |
| SIGINT of the driver | as without Ray |
| Ray is not installed; no cluster, or no address | one message, without a wait |

After each: every row exactly once, the bytes of an undisturbed run without Ray, and ``--status`` says complete.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
from support.commands import run_command
from support.real_runs import faults_of, journal_of, results_of, run_to_end, started, wait_for
from support.token_files import registers

import regplug

pytest.importorskip("ray")

# the third file's worker says who it is, and waits
WAIT_ONCE = """
import time, fcntl
if len(registers) == 20:  # not a check of the bundle
    with open(os.environ["PLACE"] + "/count", "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"x")
        file.flush()
        third = os.fstat(file.fileno()).st_size == 3
    if third:
        with open(os.environ["PLACE"] + "/part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(os.environ["PLACE"] + "/part", os.environ["PLACE"] + "/pid")
        time.sleep(600)
"""
WAIT_ON_NODE = """
import time, ray
node = os.environ["PLACE"] + "/node"
if len(registers) == 20:
    while not os.path.exists(node): time.sleep(0.01)
    if open(node).read() == ray.get_runtime_context().get_node_id():
        open(os.environ["PLACE"] + "/pid", "w").close()
        time.sleep(600)
"""


def arguments(meddling, files, out):
    return meddling.bundle, files, "-o", out, "--carry", "id"


@pytest.fixture
def place(short_path):
    """Where Ray has its sessions, and workers and the test talk; no process of Ray is left after the test."""
    yield short_path
    left = processes_of(short_path)
    for pid in processes_of(short_path, with_agents=True):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: not processes_of(short_path, with_agents=True), 60)
    assert left == []


def processes_of(place, with_agents=False):
    """The processes that have this place in their environment, but the one that tests.

    Ray's agents, which do no work, end a minute after a driver that was killed.
    """
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                is_agent = b"Agent" in (folder / "cmdline").read_bytes()
                is_ours = f"RAY_TMPDIR={place}\0".encode() in (folder / "environ").read_bytes()
                if is_ours and (with_agents or not is_agent):
                    found.append(int(folder.name))
    return found


def variables(meddling, place, code):
    return {
        "MEDDLE": code,
        "PLACE": str(place),
        "RAY_TMPDIR": str(place),
        "PYTHONPATH": str(meddling.site),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def check(out, undisturbed):
    assert faults_of(out, undisturbed) == []
    assert run_command("run", "--status", out)[0] == 0


@pytest.mark.slow
def test_after_a_worker_was_killed_the_run_completes(meddling_bundle, six_files, undisturbed, tmp_path, place):
    one = (*arguments(meddling_bundle, six_files, tmp_path / "out"), "--engine", "ray")
    with started(*one, env=variables(meddling_bundle, place, WAIT_ONCE)) as run:
        assert wait_for((place / "pid").exists)
        os.kill(int((place / "pid").read_text()), signal.SIGKILL)
        assert run.end() == 0, run.err
    assert wait_for(lambda: not processes_of(place), 30)
    check(tmp_path / "out", undisturbed)


@pytest.mark.slow
def test_a_file_whose_workers_die_is_reported_and_the_others_are_run(meddling_bundle, six_files, tmp_path, place):
    first = float(registers(20, 1)[0, 0, 0])
    env = variables(meddling_bundle, place, f"if len(registers) == 20 and registers[0, 0, 0] == {first!r}: os._exit(3)")
    one = (*arguments(meddling_bundle, six_files, tmp_path / "out"), "--engine", "ray", "--on-error", "skip")
    run = run_to_end(*one, env=env)
    assert run.process.returncode == 1
    failed = [line for line in run.err.splitlines() if "(raylet)" not in line]  # Ray reports each death, too
    assert failed == ["failed part-001: its Ray process ended without an answer, 4 times"]
    assert results_of(tmp_path / "out").keys() == {f"part-00{number}.parquet" for number in (0, 2, 3, 4, 5)}
    assert wait_for(lambda: not processes_of(place), 30)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_after_the_driver_ended_rays_workers_do_too_and_the_same_command_does_the_rest(
    meddling_bundle, six_files, undisturbed, tmp_path, place, how
):
    out = tmp_path / "out"
    one = (*arguments(meddling_bundle, six_files, out), "--engine", "ray")
    with started(*one, env=variables(meddling_bundle, place, WAIT_ONCE)) as run:
        assert wait_for((place / "pid").exists)
        run.process.send_signal(how)
        if how == signal.SIGINT:
            assert run.end() == 130
            assert run.err == "interrupted: what is done is kept; run the command again to do the rest.\n"
        else:
            run.process.wait()
        assert wait_for(lambda: not processes_of(place), 60)
    (place / "pid").unlink()
    again = run_to_end(*one, env=variables(meddling_bundle, place, ""))
    assert again.process.returncode == 0, again.err
    assert wait_for(lambda: not processes_of(place), 30)
    check(out, undisturbed)


@pytest.mark.slow
def test_after_a_node_was_killed_the_other_one_completes_the_run(
    meddling_bundle, six_files, undisturbed, tmp_path, place, monkeypatch
):
    from ray.cluster_utils import Cluster

    env = variables(meddling_bundle, place, WAIT_ON_NODE)
    paths = [str(Path(regplug.__file__).parents[1]), env["PYTHONPATH"]]
    for name, value in {**env, "PYTHONPATH": os.pathsep.join(paths)}.items():  # workers get those of their node
        monkeypatch.setenv(name, value)
    size = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=size)
    try:
        node = cluster.add_node(**size)
        one = (*arguments(meddling_bundle, six_files, tmp_path / "out"), "--engine", "ray")
        with started(*one, "--ray-address", cluster.address, env=env) as run:
            (place / "node").write_text(node.node_id)
            assert wait_for((place / "pid").exists)
            cluster.remove_node(node, allow_graceful=False)
            assert run.end() == 0, run.err
    finally:
        cluster.shutdown()
    assert wait_for(lambda: not processes_of(place), 60)
    check(tmp_path / "out", undisturbed)


@pytest.mark.parametrize(
    ("address", "reason"),
    [("127.0.0.1:1", "Connection refused"), ("nonsense", "Invalid address format: nonsense")],
)
def test_without_a_cluster_at_the_address_there_is_one_message(pool, six_files, tmp_path, address, reason):
    code, _, err = run_command(
        "run", pool[0], six_files, "-o", tmp_path / "out", "--engine", "ray", "--ray-address", address
    )
    assert code == 2
    assert err.startswith(f"error: Ray cluster {address}: expected to connect to it, got ")
    assert reason in err
    assert err.count("\n") == 1
    assert not any("done" in line for line in journal_of(tmp_path / "out"))
    assert run_command("run", pool[0], six_files, "-o", tmp_path / "out")[0] == 0


def test_without_ray_there_is_one_message(pool, six_files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = run_command("run", pool[0], six_files, "-o", tmp_path / "out", "--engine", "ray")
    assert code == 2
    assert err.startswith("error: package ray: expected to be installed, because it is the engine, got none; use pip ")
