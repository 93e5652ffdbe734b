"""Runs trainings in other processes, one thread each: at these sizes two processes beat one with two threads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regplug.commands.rank.entrants import Plan, Sources, Task, run
from regplug.commands.rank.probe import Scored
from regplug.commands.worker_processes import Died, Failed, Team
from regplug.errors import class_name, one_line
from regplug.format.temporary import temporary_folder

ROWS = 4096
FILES = "regplug-rank-"  # the prefix of the folder of tensors that workers map

Done = Callable[[Task, "tuple[Scored, Tensor] | str"], bool]


def run_here(tasks: Sequence[Task], plan: Plan, sources: Sources, done: Done) -> None:
    """Run tasks one after another in this process.

    Args:
        tasks: What to run.
        plan: How.
        sources: On what.
        done: Called with each task, and the scores and places of its samples, or a text that says why there are none.
            It returns whether the entrant's other tasks are still wanted.
    """
    dropped: set[str] = set()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for task in tasks:
            if task.entrant.name not in dropped and not done(task, _answer(task, plan, sources)):
                dropped.add(task.entrant.name)
    finally:
        torch.set_num_threads(threads)


def run_in_processes(tasks: Sequence[Task], plan: Plan, sources: Sources, done: Done, jobs: int) -> None:
    """As ``run_here``, in ``jobs`` processes, whose answers come one at a time. One that dies fails its task alone."""
    dropped: set[str] = set()

    def answered(task: Task, answer: tuple[Scored, Tensor] | str | Died | Failed) -> bool:
        if not done(task, str(answer) if isinstance(answer, Died | Failed) else answer):
            dropped.add(task.entrant.name)
        return True

    with _stored(sources) as tensors:
        start = (plan, tensors)
        Team(
            tasks,
            "regplug.commands.rank.workers:work",
            start,
            answered,
            wanted=lambda one: one.entrant.name not in dropped,
        ).run(jobs)


def work(start: tuple[Plan, dict[str, Any]]) -> Callable[[Task, Any], tuple[Scored, Tensor] | str]:
    """What a worker does with each task."""
    torch.set_num_threads(1)
    plan, stored = start
    sources = _opened(stored)
    return lambda task, say: _answer(task, plan, sources)


def _answer(task: Task, plan: Plan, sources: Sources) -> tuple[Scored, Tensor] | str:
    try:
        return run(task, plan, sources)
    except Exception as error:  # a strategy may raise anything, and the others go on
        return f"{class_name(error)}: {one_line(error)}"


@contextmanager
def _stored(sources: Sources) -> Iterator[dict[str, Any]]:
    """The tensors as files that all workers map, instead of a copy for each; those of killed rankings are deleted."""
    named = {**sources.tokens, "targets": sources.targets}
    if sources.groups is not None:
        named["groups"] = sources.groups
    with temporary_folder(Path(tempfile.gettempdir()), FILES) as folder:
        tensors = {}
        for name, tensor in named.items():
            path = folder / name
            with path.open("wb") as file:
                for part in tensor.split(ROWS):
                    part.contiguous().numpy().tofile(file)
            tensors[name] = (str(path), tuple(tensor.shape), tensor.dtype)
        yield {"tensors": tensors, "outputs": sources.outputs, "digest": sources.digest}


def _opened(stored: dict[str, Any]) -> Sources:
    tensors = {
        name: torch.from_file(path, shared=False, size=torch.Size(shape).numel(), dtype=dtype).reshape(shape)
        for name, (path, shape, dtype) in stored["tensors"].items()
    }
    targets, groups = tensors.pop("targets"), tensors.pop("groups", None)
    return Sources(tensors, targets, stored["outputs"], groups, stored["digest"])
