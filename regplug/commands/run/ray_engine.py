"""The engine for a Ray cluster: a Ray Data pipeline whose rows are units."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from typing import Any

from regplug.commands.extras import import_extra
from regplug.commands.run.job import Job
from regplug.commands.run.local_engine import work
from regplug.commands.run.run import Finished, Said
from regplug.commands.run.units import Unit


def run_row(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """A row with the answer for its unit. Both are pickled, as Arrow has no type for them."""
    answer = work(job)(pickle.loads(row["unit"]), lambda rows: None)
    return {**row, "answer": pickle.dumps(answer)}


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
        SpecError: Ray is not installed.
        RuntimeError: There is no cluster at the address.
    """
    ray: Any = import_extra("ray", "ray")
    data: Any = import_extra("ray", "ray.data")
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
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
