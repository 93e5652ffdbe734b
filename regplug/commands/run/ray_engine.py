"""The engine for a Ray cluster: a Ray Data pipeline whose rows are units."""

from __future__ import annotations

import logging
import os
import pickle
import re
import socket
from collections.abc import Sequence
from typing import Any

from regplug.commands.extras import import_extra
from regplug.commands.run.job import Job
from regplug.commands.run.local_engine import work
from regplug.commands.run.run import Finished, Said
from regplug.commands.run.units import Unit
from regplug.errors import SpecError, class_name, message_of

ATTEMPTS = 4  # of a unit whose process or node dies
CONNECT_TIMEOUT_S = 10.0


def run_row(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """A row with the answer for its unit. Both are pickled, as Arrow has no type for them."""
    if _attempt() < ATTEMPTS:
        answer = work(job)(pickle.loads(row["unit"]), lambda rows: None)
    else:
        answer = f"its Ray process ended without an answer, {ATTEMPTS} times"
    return {**row, "answer": pickle.dumps(answer)}


def _attempt() -> int:
    """How often the process or node of this task has died. Ray Data begins a task again without an end."""
    ray: Any = import_extra("ray", "ray")
    try:
        return int(ray.get_runtime_context().worker.core_worker.get_current_task_attempt_number())
    except AttributeError:  # it is no part of Ray's public interface
        return 0


def run_on_ray(
    job: Job, units: Sequence[Unit], finished: Finished, said: Said, workers: int | None, address: str | None
) -> None:
    """Run units on a Ray cluster, which runs a unit again, also on another node, if its process dies.

    The journal decides what is left to do. Ray Data's own checkpoints filter rows that were read again, and have an ID
    of every row in memory.

    Args:
        job: What to do. The output folder, local inputs and regplug must be on every node.
        units: The units.
        finished: Gets each with its results, in the order in which they are done.
        said: Counts rows.
        workers: Units at a time, each with one CPU; as many as the cluster has CPUs if None.
        address: Of the cluster; None for a new one on this machine.

    Raises:
        SpecError: Ray is not installed, or there is no cluster at the address.
    """
    ray: Any = import_extra("ray", "ray")
    data: Any = import_extra("ray", "ray.data")
    started = not ray.is_initialized()
    if started:
        _start(ray, address)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    data.DataContext.get_current().enable_progress_bars = False  # the command has its own
    try:
        rows = data.from_items([{"unit": pickle.dumps(one)} for one in units], override_num_blocks=len(units))
        for row in rows.map(run_row, fn_kwargs={"job": job}, concurrency=workers, num_cpus=1).iter_rows():
            unit = pickle.loads(row["unit"])
            said(unit.rows)
            if not finished(unit, pickle.loads(row["answer"])):
                return
    finally:
        if started:
            ray.shutdown()


def _start(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one.

    Raises:
        SpecError: There is none at the address, or none can be started.
    """
    address = address or os.environ.get("RAY_ADDRESS")  # as Ray does
    owner = f"Ray cluster {address}" if address else "Ray"
    try:
        if found := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address or ""):
            host, port = found.groups()
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()  # Ray tries for two minutes
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:  # Ray raises many kinds
        reason = message_of(error) or class_name(error)
        raise SpecError(f"{owner}: expected to connect to it, got {reason}; see `ray status`.") from error
