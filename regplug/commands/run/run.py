"""Runs a bundle over files: plans, leaves out what is done, and gives the rest to an engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from regplug.commands.run.addresses import InputFile
from regplug.commands.run.job import SUFFIX_OF, Job
from regplug.commands.run.journal import SCHEMA, Journal, is_proven, open_journal
from regplug.commands.run.results import TEMPORARY, Written
from regplug.commands.run.units import Unit, Unreadable, plan
from regplug.errors import SpecError
from regplug.format.temporary import delete, stale

Finished = Callable[[Unit, Written | str], bool]  # False: no more units
Said = Callable[[int], None]


class Engine(Protocol):
    """What runs units, in other processes."""

    def __call__(self, job: Job, units: Sequence[Unit], finished: Finished, said: Said) -> None:
        """Run units; ``finished`` gets each with its results or the reason of its failure, ``said`` counts rows."""


class Progress(Protocol):
    """What shows how far a run is."""

    def start(self, rows: int, units: int) -> None:
        """The work that is planned."""

    def add(self, rows: int) -> None:
        """Some rows are done."""


@dataclass
class Outcome:
    """What a run did.

    Args:
        written: Units and their results.
        rows: Rows written.
        skipped: Units that were done before.
        failed: The reason for each unit that failed, by name.
        left: Units that were not begun, because one failed.
        others: Units with results whose inputs were not named in this run; they stay.
    """

    written: int = 0
    rows: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left: int = 0
    others: int = 0


def run_bundle(
    job: Job, files: Sequence[InputFile], engine: Engine, *, stop: bool, force: bool, progress: Progress
) -> Outcome:
    """Run a job on files.

    Args:
        job: What to do.
        files: What to read.
        engine: What runs the units.
        stop: Whether to begin no unit after one has failed.
        force: Delete the folder's results of another recipe.
        progress: What shows how far it is.

    Raises:
        SpecError: The folder has results of another recipe, or another run works in it.
        OSError: The journal cannot be written.
    """
    with open_journal(job.output) as journal:
        _sweep(job.output)
        _remove_unproven(journal, job)
        _agree(journal, job, force)
        outcome = Outcome()
        found = {one.name: one for one in _distinct(plan(files, partial(_check_columns, job)))}
        if not force:
            _check_same_inputs(journal, job, found)
        units = [one for one in found.values() if isinstance(one, Unit)]
        for one in found.values():
            if isinstance(one, Unreadable):
                _fail(journal, job, outcome, one, one.reason)
        if stop and outcome.failed:
            _plan_is(journal, job, list(found), units)
            outcome.left = len(units)
            return outcome
        _remove_others(journal, job, found)
        outcome.others = sum(name not in found for name in journal.record.done)
        waiting = [one for one in units if not _is_done(journal, job, one)]
        outcome.skipped = len(units) - len(waiting)
        _check_no_others(job, waiting)
        _plan_is(journal, job, list(found), units)
        progress.start(sum(one.rows for one in waiting), len(waiting))

        def finished(unit: Unit, result: Written | str) -> bool:
            if isinstance(result, str):
                _fail(journal, job, outcome, unit, result)
                return not stop
            journal.add(
                done=unit.name,
                file=job.file_name(unit.name),
                input=unit.file.address,
                stamp=unit.file.stamp,
                first=unit.first,
                **result.as_dict(),
            )
            outcome.written += 1
            outcome.rows += result.rows
            return True

        try:
            if waiting:
                engine(job, waiting, finished, progress.add)
        finally:
            _sweep(job.output)
            _remove_unproven(journal, job)
        outcome.left = len(waiting) - outcome.written - len([one for one in waiting if one.name in outcome.failed])
        return outcome


def _check_columns(job: Job, names: Sequence[str]) -> None:
    job.mapper.input_columns(names)
    job.carried(names)


def _agree(journal: Journal, job: Job, force: bool) -> None:
    recipe, before = job.recipe(), journal.record.recipe
    if before == recipe:
        return
    if before is not None:
        if journal.record.done and not force:
            name = next(key for key in {**recipe, **before} if before.get(key) != recipe.get(key))
            raise SpecError(
                f"output {job.output}: expected results of the same run, got {name} {before.get(name)!r} there and "
                f"{recipe.get(name)!r} now; use another folder, or --force, which deletes them."
            )
        for name in list(journal.record.done):
            _remove(journal, job, name)
        journal.add(recipe=recipe)
    else:
        journal.add(journal=SCHEMA, recipe=recipe)


def _is_done(journal: Journal, job: Job, unit: Unit) -> bool:
    line = journal.record.done.get(unit.name)
    if line is None:
        return False
    same = (line["input"], line["stamp"], line["first"], line["rows"])
    if same == (unit.file.address, unit.file.stamp, unit.first, unit.rows) and is_proven(
        job.output / line["file"], line
    ):
        return True
    _remove(journal, job, unit.name)  # of another state of the file
    return False


def _distinct(found: Iterable[Unit | Unreadable]) -> Iterator[Unit | Unreadable]:
    """The same units.

    Raises:
        SpecError: Results of two files would have one name, as a part of one may have.
    """
    addresses: dict[str, str] = {}
    for one in found:
        other = addresses.setdefault(one.name, one.file.address)
        if other != one.file.address:
            raise SpecError(
                f"inputs: expected files with different names, got {other} and {one.file.address}, both with results "
                f"{one.name}; rename one."
            )
        yield one


def _check_same_inputs(journal: Journal, job: Job, found: Mapping[str, Unit | Unreadable]) -> None:
    """Refuse to replace results of other files that have the same names.

    Raises:
        SpecError: There are some.
    """
    for name, one in found.items():
        before = journal.record.done.get(name)
        if before is not None and before["input"] != one.file.address:
            raise SpecError(
                f"output {job.output}: expected {name} to have results of {one.file.address}, got those of "
                f"{before['input']}; use another folder, or --force, which replaces them."
            )


def _remove_others(journal: Journal, job: Job, found: Mapping[str, Unit | Unreadable]) -> None:
    """Delete results of the same files under other names, as when a file has grown and has more parts now."""
    inputs = {one.file.address for one in found.values()}
    for name, line in list(journal.record.done.items()):
        if line["input"] in inputs and (name not in found or found[name].file.address != line["input"]):
            _remove(journal, job, name)


def _remove_unproven(journal: Journal, job: Job) -> None:
    """Delete results that were finished in the moment in which an earlier run died: nothing says of which input."""
    for file in journal.record.unproven():
        _unlink(job.output / file)


def _check_no_others(job: Job, waiting: Sequence[Unit]) -> None:
    """Refuse to replace files that are not of a run.

    Raises:
        SpecError: There is one.
    """
    for one in waiting:
        path = job.output / job.file_name(one.name)
        if os.path.lexists(path):
            raise SpecError(
                f"output {job.output}: expected no other files under names of results, got "
                f"{job.file_name(one.name)}, which the journal does not name; move it away."
            )


def _plan_is(journal: Journal, job: Job, names: Sequence[str], units: Sequence[Unit]) -> None:
    plan = {"names": list(names), "suffix": SUFFIX_OF[job.format], "rows": sum(one.rows for one in units)}
    if plan != journal.record.planned:
        journal.add(planned=plan)


def _remove(journal: Journal, job: Job, name: str) -> None:
    _unlink(job.output / journal.record.done[name]["file"])
    journal.add(removed=name)


def _unlink(path: Path) -> None:
    with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
        path.unlink()


def _fail(journal: Journal, job: Job, outcome: Outcome, unit: Unit | Unreadable, reason: str) -> None:
    if unit.name in journal.record.done:
        _remove(journal, job, unit.name)  # of another state of the file
    journal.add(failed=unit.name, input=unit.file.address, reason=reason)
    outcome.failed[unit.name] = reason


def _sweep(output: Path) -> None:
    """Delete the unfinished files of workers that died."""
    for folder, _, _ in os.walk(output):
        for path in stale(Path(folder), TEMPORARY):
            delete(path)
